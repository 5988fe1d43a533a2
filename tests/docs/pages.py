"""The pages' code blocks, and what is said of them in comments that a reader does not see.

A page is one session: its blocks run one after another, in one folder. Before a block may stand

    <!-- not run: REASON -->        it is parsed only
    <!-- run by: make TARGET -->    it is parsed here, and run by that target
    <!-- exit code: N -->           its last command ends so
    <!-- file: NAME -->             it is the content of this file

and anywhere in a page, to prepare what a reader has already:

    <!-- setup: python
    …
    -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)

SHELL: Final = ("sh", "console")
RUN: Final = (*SHELL, "python")
PARSED: Final = ("json", "yaml", "toml")
SHOWN: Final = ("text",)
"""What a program prints, a query, a picture in characters: nothing to run."""

_DIRECTIVE: Final = re.compile(r"\{[\w-]+\}")
_MARK: Final = re.compile(r"<!-- (not run|run by|exit code|file): (.+?) -->", re.DOTALL)
_SETUP: Final = re.compile(r"<!-- setup: (\w+)\n(.*?)\n-->", re.DOTALL)


class PageError(Exception):
    """A page has a block of which it is not known what to do with it."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes
    ----------
    path, line
        Where it is.
    language
        One of `RUN`, `PARSED` and `SHOWN`.
    text
        The code.
    not_run
        Why it is not run, if it is not.
    run_by
        The make target that runs it, if it is not `make test`.
    exit_code
        What its last command ends with.
    file
        The file whose content it is, if it is not run itself.
    """

    path: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    run_by: str | None = None
    exit_code: int = 0
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path, text: str | None = None) -> Iterator[Block]:
    """Yield a page's blocks in their order, preparations among them.

    Raises
    ------
    PageError
        A block has no language, or one of which nothing is known, or a mark has no block.
    """
    marks: dict[str, str] = {}
    for token in _tokens(path.read_text() if text is None else text):
        line = (token.map or [0])[0] + 1
        where = f"{path.name}:{line}"
        if token.type == "html_block":
            setup = _SETUP.fullmatch(token.content.strip())
            if setup:
                yield Block(path, line, setup[1], setup[2])
            marks |= {mark[1]: mark[2] for mark in _MARK.finditer(token.content)}
        elif token.type == "code_block":
            raise PageError(f"{where}: an indented block: put it between fences, with its language")
        elif token.type == "fence" and not _DIRECTIVE.match(token.info):
            language = token.info.strip()
            if language not in RUN + PARSED + SHOWN:
                raise PageError(f"{where}: a block of {language or 'no language'}")
            yield Block(
                path,
                line,
                language,
                token.content,
                marks.pop("not run", None),
                marks.pop("run by", None),
                int(marks.pop("exit code", 0)),
                marks.pop("file", None),
            )
        elif marks and token.level == 0 and token.nesting >= 0:
            raise PageError(f"{where}: no block follows {marks}")


def inline_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the code in a page's sentences and tables, each with its line."""
    for token in _tokens(path.read_text()):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def _tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)
