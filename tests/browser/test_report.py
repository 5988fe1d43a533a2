"""The page of `gradshard report` in Chromium: `make test-browser`."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshard.report.page import page
from gradshard.report.round_facts import Facts
from tests.unit.report_rounds import HOSTILE, sample

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-browser` has a browser")

PHONE, TABLET, DESKTOP = 360, 700, 1280
PAPER = 718
"""Width of A4 between Chromium's margins."""
NAMES = ("chromium", "chromium-browser", "google-chrome")

ROUNDS: dict[str, Callable[[], list[Facts]]] = {
    "one": lambda: [sample()],
    "partial": lambda: [sample(layers=12, clients=15)],
    "failed": lambda: [sample("x" * 64, state="failed", cause="y" * 900, done=0.5, groups=2)],
    "failed before planning": lambda: [
        sample("a"),
        sample("b", state="failed", cause="1 good updates", is_planned=False),
    ],
    "awaiting": lambda: [sample(state="awaiting")],
    "several": lambda: [sample(f"r{n}", seed=n, groups=1 + n % 2) for n in range(8)],
    "large": lambda: [sample(clients=1_000, groups=16, shards=588, layers=60)],
}


class Opened:
    """A page in a tab, with the messages and the requests of the browser."""

    def __init__(self, tab: Any, file: Path) -> None:
        self.tab = tab
        self.said: list[str] = []
        self.asked: list[str] = []
        tab.on("console", lambda message: self.said.append(message.text))
        tab.on("pageerror", lambda error: self.said.append(str(error)))
        tab.on("dialog", lambda dialog: self.said.append(dialog.message))
        tab.on("request", lambda request: self.asked.append(request.url))
        began = time.monotonic()
        tab.goto(file.as_uri())
        self.seconds = time.monotonic() - began

    def ask(self, expression: str) -> Any:
        return self.tab.evaluate(expression)

    def unfold(self) -> None:
        """Open every part and table."""
        self.ask("document.querySelectorAll('details').forEach(fold => fold.open = true)")


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            # In a container Chromium's own sandbox has no rights; the page is ours.
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.fail(
                f"no Chromium starts ({str(error).splitlines()[0]}): install it, name it with "
                "CHROMIUM=/path/to/chromium, or run .venv-browser/bin/playwright install chromium"
            )
        yield browser
        browser.close()


@pytest.fixture
def open_(browser: Any, tmp_path: Path) -> Iterator[Open]:
    tabs = []

    def open_(rounds: list[Facts], *, width: int = DESKTOP, scheme: str = "light") -> Opened:
        file = tmp_path / "report.html"
        file.write_text(page(rounds, made_at="2026-03-01 13:00 UTC"))
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tabs.append(tab)
        return Opened(tab, file)

    yield open_
    for tab in tabs:
        tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ROUNDS)
def test_fits_its_window_without_messages(open_: Open, name: str, width: int, scheme: str) -> None:
    opened = open_(ROUNDS[name](), width=width, scheme=scheme)
    assert opened.ask("document.documentElement.scrollWidth") <= width
    opened.unfold()
    assert opened.ask("document.documentElement.scrollWidth") <= width
    assert opened.said == []
    assert len(opened.asked) == 1
    if folder := os.environ.get("SCREENSHOTS"):
        file = Path(folder) / f"{name}-{scheme}-{width}.png"
        opened.tab.screenshot(path=file, full_page=name != "large")


@pytest.mark.parametrize("name", ROUNDS)
def test_a_phone_shows_every_cell_without_scrolling_sideways(open_: Open, name: str) -> None:
    opened = open_(ROUNDS[name](), width=PHONE)
    opened.unfold()
    cut_off = opened.ask("""() => [...document.querySelectorAll('.scroll')]
      .filter(frame => frame.scrollWidth > frame.clientWidth)
      .map(frame => frame.getAttribute('aria-label'))""")
    assert cut_off == []
    unlabelled = opened.ask("""() => [...document.querySelectorAll('.cards td:not(:empty)')]
      .filter(cell => getComputedStyle(cell, '::before').content.length < 3).length""")
    assert unlabelled == 0


def test_no_word_of_a_title_is_broken(open_: Open) -> None:
    opened = open_([sample()])
    opened.unfold()
    # A word on two lines has two boxes.
    broken = """[...document.querySelectorAll('thead th')].flatMap(title => {
        const text = [...title.childNodes].find(node => node.nodeType === Node.TEXT_NODE)
        if (!text) return []
        return [...text.data.matchAll(/\\S+/g)].filter(word => {
            const range = document.createRange()
            range.setStart(text, word.index)
            range.setEnd(text, word.index + word[0].length)
            return range.getClientRects().length > 1
        }).map(word => word[0])
    })"""
    assert opened.ask("document.querySelectorAll('thead th').length") > 10
    assert opened.ask(broken) == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_five_rounds_take_a_few_screens(open_: Open, width: int) -> None:
    rounds = [sample(f"r{n}", seed=n) for n in range(5)]
    opened = open_(rounds, width=width)
    assert (
        opened.ask("document.documentElement.scrollHeight") < {PHONE: 5_000, DESKTOP: 2_600}[width]
    )


def test_every_link_leads_to_a_visible_heading(open_: Open) -> None:
    for rounds in (ROUNDS["several"](), ROUNDS["one"]()):
        opened = open_(rounds)
        for link in opened.tab.query_selector_all("nav a"):
            link.click()
            top = opened.ask("document.querySelector(':target').getBoundingClientRect().top")
            height = opened.ask("document.querySelector(':target').getBoundingClientRect().height")
            assert 0 <= top < 800
            assert height > 10


def test_a_screen_reader_finds_tables_on_phones(open_: Open) -> None:
    """Rows that are drawn as cards keep their roles."""
    opened = open_([sample()], width=PHONE)
    tree = opened.tab.locator("main").aria_snapshot()
    for words in (
        'table "What became of each update"',
        'rowheader "mallory"',
        'cell "outcome rejected"',
    ):
        assert words in tree, tree


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_: Open, scheme: str) -> None:
    """WCAG 2's contrast of 4.5."""
    opened = open_([*ROUNDS["failed"](), *ROUNDS["awaiting"]()], scheme=scheme)
    opened.unfold()
    poor = opened.ask("""() => {
      const parse = c => c.match(/[\\d.]+/g).map(Number);
      const light = c => { const [r, g, b] = parse(c).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b };
      const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor, [,,, alpha = 1] = parse(c);
        if (alpha > 0) return c } return 'rgb(255, 255, 255)' };
      return [...document.querySelectorAll('body *')]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => !e.closest('svg'))
        .map(e => [light(getComputedStyle(e).color), light(behind(e)), e.outerHTML.slice(0, 80)])
        .map(([a, b, html]) => [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), html])
        .filter(([contrast]) => contrast < 4.5) }""")
    assert poor == []
    body = opened.ask("getComputedStyle(document.body).backgroundColor")
    assert body == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def test_text_of_clients_runs_nothing(open_: Open) -> None:
    facts = sample(layers=3, state="failed", cause=HOSTILE, reason=HOSTILE)
    facts["contributors"][0]["client"] = facts["uploads"][0]["client"] = HOSTILE
    facts["layers"][0]["name"] = facts["round"] = HOSTILE
    opened = open_([facts])
    opened.unfold()
    assert opened.said == []
    assert opened.ask("document.scripts.length") == 0
    assert "<script>alert(1)</script>" in opened.ask("document.body.innerText")


def test_the_policy_stops_markup_that_was_not_escaped(open_: Open) -> None:
    opened = open_([sample()])
    opened.ask("""() => { const image = document.createElement('img');
      image.src = 'https://example.org/x.png'; document.body.append(image);
      const script = document.createElement('script');
      script.text = 'document.title = "run"'; document.body.append(script) }""")
    assert opened.ask("document.title") != "run"
    assert len(opened.said) >= 2


def test_a_large_round_opens_quickly(open_: Open) -> None:
    # Ten times the usual seconds.
    assert open_(ROUNDS["large"]()).seconds < 10


def test_prints_dark_on_white_with_a_page_for_each_round(open_: Open, tmp_path: Path) -> None:
    opened = open_([sample("a"), sample("b")], scheme="dark")
    written = opened.tab.pdf(path=tmp_path / "report.pdf", format="A4")
    assert written.startswith(b"%PDF")
    opened.tab.emulate_media(media="print")
    assert opened.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.ask("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    breaks = opened.ask(
        "[...document.querySelectorAll('section.round')].map(s => getComputedStyle(s).breakBefore)"
    )
    assert breaks == ["page", "page"]


def test_print_unfolds_parts(open_: Open) -> None:
    opened = open_([sample("a"), sample("b")])
    height = "document.querySelectorAll('.content table')[0].getBoundingClientRect().height"
    assert opened.ask("document.querySelector('.content').checkVisibility()") is False
    opened.tab.emulate_media(media="print")
    assert opened.ask(height) > 100


@pytest.mark.parametrize("name", ["one", "several", "failed before planning"])
def test_paper_shows_every_column(open_: Open, name: str) -> None:
    opened = open_(ROUNDS[name](), width=PAPER)
    opened.tab.emulate_media(media="print")
    cut_off = opened.ask(f"""() => [...document.querySelectorAll('table')]
      .map(table => table.getBoundingClientRect().right).filter(right => right > {PAPER})""")
    assert cut_off == []


def test_tables_can_be_reached_and_scrolled_with_the_keyboard(open_: Open) -> None:
    opened = open_([sample()], width=TABLET)
    label = "What became of each update"
    for _ in range(40):
        opened.tab.keyboard.press("Tab")
        if opened.ask("document.activeElement.getAttribute('aria-label')") == label:
            break
    else:
        pytest.fail("the table was not reached")
    opened.tab.keyboard.press("ArrowRight")
    opened.tab.wait_for_function("document.activeElement.scrollLeft > 0", timeout=2_000)
