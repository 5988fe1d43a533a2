"""The site that `make docs` builds: whole, strict, and without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs.tables import commands

from tests.docs.pages import PAGES, ROOT

STRICT = ("--nitpicky", "--fail-on-warning", "--keep-going", "--quiet")


def build(source: Path, site: Path, *options: str) -> str:
    """Build a site; return what Sphinx complains of."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *STRICT, "-c", ROOT / "docs", *options, source, site],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode == 0) is (done.stderr == ""), done
    return done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    assert build(ROOT, folder) == ""
    return folder


def test_make_docs_is_as_strict() -> None:
    [command] = re.findall(r"^SPHINX := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(STRICT) <= set(command.split())


def test_every_page_is_there_and_nothing_comes_from_elsewhere(site: Path) -> None:
    for path in PAGES:
        assert (site / path.relative_to(ROOT)).with_suffix(".html").is_file(), path
    loaded = r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\""
    for page in site.rglob("*.html"):
        for target in re.findall(loaded, page.read_text()):
            assert not re.match(r"(?:[a-z]+:)?//", target), f"{page.name} loads {target}"
            file = page.parent / re.split(r"[?#]", target)[0]
            if target == "#":
                continue  # the page itself
            assert file.is_file(), f"{page.name}: {target}"
    for sheet in site.rglob("*.css"):
        for target in re.findall(r"url\(([^)]*)\)|@import", sheet.read_text()):
            assert "//" not in target.partition("data:")[0], f"{sheet.name} loads {target}"


def test_the_first_page_leads_to_the_documentation(site: Path) -> None:
    [target] = re.findall(r"url=([^\"]+)", (site / "index.html").read_text())
    assert "Getting started" in (site / target).read_text()


def test_tables_of_the_code_are_on_the_site(site: Path) -> None:
    page = (site / "docs" / "commands.html").read_text()
    for name, command in commands().items():
        section = page.partition(f'id="{name.replace(" ", "-")}"')[2].partition("</section>")[0]
        assert f"{name} [OPTIONS]" in section
        for option in command.params:
            if option.name == "output":
                assert "--output" in section, name


def test_docstrings_are_on_the_site(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text()
    for name in (
        "gradshard.client.federation.Federation.open_round",
        "gradshard.client.round_by_ticket.TicketRound.submit",
        "gradshard.torch.delta",
        "gradshard.flower.S3FedAvg",
        "gradshard.local_engine.lifecycle.up",
        "gradshard_core.errors.RoundFailed",
    ):
        assert f'id="{name}"' in page


def test_dead_links_fail_the_build(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "docs"
    folder.mkdir(parents=True)
    (folder / "index.md").write_text("# Index\n\n```{toctree}\npage\n```\n")
    page = folder / "page.md"
    page.write_text(
        "# Page\n\n[a](gone.md) [b](index.md#lost) [c](#missing)\n![d](away.svg)\n\n"
        "### Deeper\n\n```{eval-rst}\n.. autoclass:: gradshard.Gone\n```\n"
    )
    (folder / "alone.md").write_text("# In no list of contents\n")
    said = build(tmp_path / "source", tmp_path / "site")
    for complaint in ("gone.md", "'lost'", "'missing'", "away.svg", "Non-consecutive header"):
        assert complaint in said, said
    assert "gradshard.Gone" in said or "'Gone'" in said
    assert "alone.md: WARNING: document isn't included in any toctree" in said
    page.write_text("# Page\n\n[there](index.md#index)\n")
    (folder / "alone.md").unlink()
    shutil.rmtree(tmp_path / "site")
    assert build(tmp_path / "source", tmp_path / "site") == ""
