"""What a page's session sees: that what a page says is not what happens."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import Block, blocks
from tests.docs.session import Session

PAGE = Path(__file__).parents[2] / "docs" / "page.md"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "folder", port=1)


def only(text: str) -> Block:
    [block] = blocks(PAGE, text)
    return block


def test_the_shell_goes_on_where_it_was(session: Session) -> None:
    session.run(only("```sh\nmkdir inner\ncd inner\nexport NAME='a b'\n```\n"))
    session.run(only('```console\n$ basename "$PWD"; echo $NAME\ninner\na b\n```\n'))


def test_python_goes_on_where_it_was_in_the_same_folder(session: Session) -> None:
    session.run(only("```sh\necho 7 > seven\n```\n"))
    session.run(only("```python\nimport os\nseven = os.listdir()\n```\n"))
    session.run(only("```python\nassert seven == ['seven']\n```\n"))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("```sh\nfalse\ntrue\n```\n", "docs/page.md:1: ended with 1"),
        ("```sh\nfalse | true\n```\n", "ended with 1"),
        ("```console\n$ echo a\nb\n```\n", "docs/page.md:1: echo a"),
        ("```console\n$ echo a\n```\n", "and the page shows"),
        ("```console\n$ echo a >&2\n```\n", "and the page shows"),
        ("```console\n$ true\na\n```\n", "and the page shows"),
        ("<!-- exit code: 1 -->\n```console\n$ true\n```\n", "ended with 0"),
    ],
)
def test_a_difference_of_the_output_fails(text: str, seen: str, session: Session) -> None:
    with pytest.raises(AssertionError, match=re.escape(seen)):
        session.run(only(text))


def test_pythons_traceback_names_the_pages_line(session: Session) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        session.run(only("Text.\n\n```python\none = 1\none / 0\n```\n"))
    last = caught.traceback[-1]
    assert (Path(last.path), last.lineno + 1) == (PAGE, 5)


def test_a_failure_that_is_announced(session: Session) -> None:
    session.run(only("<!-- exit code: 3 -->\n```console\n$ echo no >&2; exit 3\nno\n```\n"))
