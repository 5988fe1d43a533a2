"""The documentation site, in Chromium: `make test-browser`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.test_report import DESKTOP, PHONE, Opened, browser

__all__ = ["browser"]

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(
    str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if page != SITE / "index.html"
)
LOOKED_AT = ("docs/index.html", "docs/getting-started.html", "docs/commands.html", "docs/api.html")


@pytest.fixture
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, scheme = request.param
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    yield tab
    tab.close()


def test_the_site_is_built() -> None:
    assert set(LOOKED_AT) <= set(PAGES), "`make docs` builds it"


@pytest.mark.parametrize(
    "tab", [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "light"), (DESKTOP, "dark")], indirect=True
)
def test_every_page_fits_its_window_in_silence_and_asks_for_nothing_else(
    tab: Any, request: pytest.FixtureRequest
) -> None:
    for name in PAGES:
        opened = Opened(tab, SITE / name)
        width = tab.viewport_size["width"]
        assert opened.ask("document.documentElement.scrollWidth") <= width, name
        assert opened.said == [], name
        assert [url for url in opened.asked if not url.startswith("file:")] == [], name
        if (folder := os.environ.get("SCREENSHOTS")) and name in LOOKED_AT:
            file = f"{Path(name).stem}-{request.node.callspec.id}.png"
            tab.screenshot(path=Path(folder) / file)


@pytest.mark.parametrize("tab", [(DESKTOP, "light")], indirect=True)
def test_the_search_works_without_a_server(tab: Any) -> None:
    opened = Opened(tab, SITE / "docs" / "index.html")
    tab.fill("input[name=q]", "quorum")
    tab.press("input[name=q]", "Enter")
    tab.click("#search-results li > a >> text=Glossary")  # which defines the word
    tab.wait_for_selector("h1 >> text=Glossary")
    assert opened.said == []


@pytest.mark.parametrize("tab", [(PHONE, "light")], indirect=True)
def test_a_phone_reaches_every_page(tab: Any) -> None:
    Opened(tab, SITE / "index.html")
    tab.wait_for_url("**/docs/index.html")
    tab.click("label[for=__navigation] >> visible=true")
    tab.click(".sidebar-tree >> text=Objects and files")
    tab.wait_for_selector("h1 >> text=Objects and files")
