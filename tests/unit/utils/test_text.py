"""Text for people."""

from gradshard.utils.text import escape_terminal


def test_plain_escapes_all_that_is_not_printed() -> None:
    assert escape_terminal("a b\t\x9b\u2028é漢[b]\ud800") == r"a b\t\x9b\u2028é漢[b]\ud800"
