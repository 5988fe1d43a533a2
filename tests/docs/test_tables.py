"""What pages list of commands, settings and terms is what there is."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from docs import tables

from gradshard import Federation
from gradshard.client.round_options import RoundOptions
from gradshard_core.robust.rules import ROBUST_RULES
from gradshard_core.specs.round_spec import RoundSpec
from tests.docs.pages import PAGES, ROOT

SETTINGS = (ROOT / "docs" / "settings.md").read_text()
FORMATS = tables.filled((ROOT / "docs" / "formats.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_of_the_code_alone(page: Path) -> None:
    # The site's build fills them in: a table in the repository would get old.
    text = page.read_text()
    marked = re.findall(r"<!-- table: (.+?) -->\n(.*?)<!-- end of table -->", text, re.DOTALL)
    assert len(marked) == text.count("<!-- table: ") == text.count("<!-- end of table -->")
    for name, content in marked:
        assert not re.search("^\\|", content, re.MULTILINE), f"delete the table of {name}"
        assert "\n|---|" in tables.table(name)


def test_the_page_of_robust_rules_has_a_row_for_each_with_its_settings() -> None:
    text = (ROOT / "docs" / "robust.md").read_text()
    of_all = set(re.findall(r"^- All rules take \[`(\w+)`\]", text, re.MULTILINE))
    for name, rule in ROBUST_RULES.items():
        [row] = re.findall(rf"^\| `{name}` \| .+ \|$", text, re.MULTILINE)[:1]
        described = set(re.findall(r"`(\w+)`", row))
        assert of_all <= rule.settings.keys() <= of_all | described, name


def test_a_table_that_is_older_than_the_code_is_seen() -> None:
    page = "<!-- table: commands -->\nold\n<!-- end of table -->\n"
    assert "| `-o`, `--output` FILE |" in tables.filled(page)


def test_every_command_is_named_and_has_a_table_of_options() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    named = set(re.findall(r"`([a-z][a-z ]*)`", text))
    assert {name.removeprefix("gradshard ") for name in tables.commands()} <= named
    headings = re.findall(r"^### (gradshard .+)$", tables.filled(text), re.MULTILINE)
    assert sorted(headings) == sorted(tables.commands())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_link_needs_the_site(page: Path) -> None:
    # Headings of commands are on the site only, where Sphinx finds no fault with such a link.
    assert "commands.md#gradshard-" not in page.read_text()


def test_every_variable_that_is_read_is_named() -> None:
    code = [path for name in ("src", "layers", "functions") for path in (ROOT / name).rglob("*.py")]
    pattern = r"environ(?:\.get)?[\[(]\"(\w+)\""
    read = {name for path in code for name in re.findall(pattern, path.read_text())}
    set_ = set(re.findall(r"^ {8,10}([A-Z][A-Z_]+): ", TEMPLATE_VARIABLES, re.MULTILINE))
    assert read >= {"GRADSHARD_BUCKET", "XDG_CACHE_HOME"}
    assert set_ >= {"GRADSHARD_BUCKET", "OPENBLAS_NUM_THREADS", "GRADSHARD_SCHEDULE_GROUP"}
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", tables.filled(SETTINGS)))
    assert read | set_ <= named | {"PATH"}
    # And nothing that is gone.
    ours = {name for name in named if name.startswith("GRADSHARD_")}
    assert ours <= read | set_


def test_every_parameter_is_named() -> None:
    section = SETTINGS.partition("## Parameters of the template\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", section))
    parameters = re.findall(r"^\| `(\w+)` \|", tables.table("parameters"), re.MULTILINE)
    assert named == set(parameters)


TEMPLATE_VARIABLES = "\n".join(
    re.findall(
        r"^ +Variables:\n((?: {8,}.+\n)+)", (ROOT / "template.yaml").read_text(), re.MULTILINE
    )
)


def test_the_page_has_every_option_of_a_round_with_its_default() -> None:
    section = FORMATS.partition("## Opening a round\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+?) \|$", section, re.MULTILINE)
    stated = dict(rows)
    known = {field.name: field.default for field in fields(RoundSpec)}
    assert stated.keys() == known.keys()
    parameters = inspect.signature(Federation.open_round).parameters
    given = {name for name in known if name in parameters}
    # Only trainings state what the last one is.
    assert known.keys() == RoundOptions.__annotations__.keys() | given | {"inbox"}
    for name, default in known.items():
        if default not in (None, MISSING):
            text = str(default).lower() if isinstance(default, bool) else str(default)
            assert stated[name].strip("`") == text, name
        assert (name in given) == (stated[name] == "required"), name
    # The one default that goes by another field.
    assert stated["min_clients"] == "more than half of the clients"
