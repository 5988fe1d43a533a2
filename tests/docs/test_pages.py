"""Every page's blocks are run, or say why not; what is not run is parsed."""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from gradshard.cli import main
from tests.docs.pages import PAGES, ROOT, RUN, SHOWN, PageError, blocks, inline_code
from tests.docs.parsing import ParseError, options_of, parse, parse_shell, sam_command
from tests.docs.session import console_steps, is_alike

FILE = Path("page.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_block_is_of_a_known_language_and_would_be_accepted(path: Path) -> None:
    for block in blocks(path):
        if block.language not in SHOWN:
            parse(block)


def test_no_page_has_marks_of_a_merge() -> None:
    marked = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    assert not [path.name for path in PAGES if marked.search(path.read_text())]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_and_options_in_sentences_are_there(path: Path) -> None:
    for line, code in inline_code(path):
        options = re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
        is_others = code.split()[0].endswith(("aws", "pip-audit", "playwright", "uv"))
        for option in () if is_others else options:
            assert option in all_options(), f"{path.name}:{line}: `{code}`: no option {option}"
        if code.startswith("gradshard ") and "COMMAND" not in code:
            check_named(code.split()[1:], f"{path.name}:{line}: `{code}`")


def check_named(words: list[str], where: str) -> None:
    """Check a command that is named with placeholders: its name and its options."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found, f"{where}: no command {words[0]}"
        command, words = found, words[1:]
    known = options_of(command)
    if command.name == "deploy":
        known |= options_of(sam_command(["deploy"])[0])
    for word in words:
        option = word.strip("()[]").partition("=")[0]
        if option.startswith("--"):
            assert option in known, f"{where}: no option {option}"


def every_command(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                yield from every_command(inner)


SAM_COMMANDS = ("build", "deploy", "delete", "sync", "logs", "validate", "local invoke")
OTHER_PROGRAMS = {
    *("--engine", "--learning-rates", "--mib", "--rounds"),
}
"""Options of the examples and benchmarks."""


@cache
def all_options() -> frozenset[str]:
    """Return the options of every program."""
    # Not while tests are collected: `sam` takes a second to import.
    return frozenset(OTHER_PROGRAMS).union(
        *map(options_of, every_command(main)),
        *(options_of(sam_command(name.split())[0]) for name in SAM_COMMANDS),
    )


@pytest.mark.parametrize(
    "text",
    [
        "```\nls\n```\n",
        "```ruby\nputs\n```\n",
        "text\n\n    gradshard plan\n",
        "<!-- not run: why -->\n\ntext\n",
    ],
)
def test_a_block_of_which_nothing_is_known_is_an_error(text: str) -> None:
    with pytest.raises(PageError, match=r"page\.md:"):
        list(blocks(FILE, text))


def test_marks_belong_to_the_block_that_follows() -> None:
    text = (
        "<!-- setup: python\nx = 1\n-->\n\n<!-- not run: needs AWS -->\n```sh\nsam build\n```\n\n"
        "<!-- exit code: 1 -->\n```console\n$ false\n```\n```{toctree}\npage\n```\n"
    )
    assert [(b.language, b.text, b.not_run, b.exit_code) for b in blocks(FILE, text)] == [
        ("python", "x = 1", None, 0),
        ("sh", "sam build\n", "needs AWS", 0),
        ("console", "$ false\n", None, 1),
    ]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("gradshard open r1", None),
        ("gradshard opne r1", "no command opne"),
        ("gradshard open r1 --quorum 3", "No such option"),
        ("gradshard open r1 --clients many", "not a valid integer"),
        ("gradshard deploy --guided --parameter-overrides A=b", None),
        ("gradshard deploy --giuded", "no option --giuded"),
        ("env -u AWS_PROFILE sam local invoke F -e events/f.json | echo > /dev/null", None),
        ("sam sync --now", "no option --now"),
        ("sam local sync", "no command sync"),
        ("aws s3api head-object --bucket b --key k", None),
        ("aws s3api head-object --bucket b", "--key is missing"),
        ("aws s3api behead-object --bucket b", "no operation behead-object"),
        ("aws s3api head-object --bucket b --key k --hat red", "no option --hat"),
        ("make test-flower FLOWER_BASE_PYTHON=python3.12", None),
        ("make tests", "no target tests"),
        ("python -m benchmarks.loud", "no module benchmarks.loud"),
        ("gradshard plan &&", "syntax error"),
        ("rm -rf x", "not a command that is known"),
    ],
)
def test_parsing_a_command(command: str, reason: str | None) -> None:
    if reason is None:
        parse_shell(command)
    else:
        with pytest.raises(ParseError, match=re.escape(reason)):
            parse_shell(command)


@pytest.mark.parametrize(
    ("shown", "said", "alike"),
    [
        ("12 of 20 tasks, 1.5 MB\n", "7 of 7 tasks, 900 kB\n", True),
        ("12 of 20 tasks\n", "12 of 20 tusks\n", False),
        ("opened 2026-11-20T19:47:50+00:00\n", "opened   2027-01-02T03:04:05.678+00:00\n", True),
        ("a\n⋮\nd\n", "a\nb\nc\nd\n", True),
        ("a\n⋮\nd\n", "a\nd\n", True),
        ("a\n", "a\nb\n", False),
        ("at http://…; log: …\n", "at http://127.0.0.1:1; log: /x/y\n", True),
        ("┏━━━┳━━━━┓\n│ a │ bc │\n", "┏━━━━━┳━━┓\n│  a  │ bc│\n", False),
        ("┏━━━┳━━━━┓\n│ a │ bc │\n", "┏━━━━━┳━━┓\n│   a │ bc │\n", True),
    ],
)
def test_output_is_compared_without_numbers_and_widths(shown: str, said: str, alike: bool) -> None:
    assert is_alike(shown, said) is alike


def test_a_terminal_is_taken_apart() -> None:
    assert console_steps("$ a \\\n    b\nout\n$ c\n") == [("a \\\n    b", "out\n"), ("c", "")]


def test_the_client_in_another_language_has_only_the_standard_library() -> None:
    [client] = [
        block
        for block in blocks(ROOT / "docs" / "formats.md")
        if block.language == "python" and "http.client" in block.text
    ]
    imported = re.findall(r"^(?:from|import) (\w+)", client.text, re.MULTILINE)
    assert len(imported) > 4
    assert set(imported) <= sys.stdlib_module_names
    assert (client.not_run, client.run_by) == (None, None)


def test_blocks_run_by_a_target_name_a_known_target() -> None:
    targets = {b.run_by for path in PAGES for b in blocks(path) if b.language in RUN and b.run_by}
    assert targets == {"make test-flower", "make test-torch"}


def test_blocks_that_are_not_run_say_why() -> None:
    for path in PAGES:
        for block in blocks(path):
            assert block.not_run is None or len(block.not_run.split()) >= 3, block
