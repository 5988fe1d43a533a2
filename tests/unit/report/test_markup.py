"""HTML elements that escape every text."""

from gradshard.report.markup import joined, listed, named, tag, text


def test_markup_escapes_all_but_markup() -> None:
    assert text("<b>\"'&") == "&lt;b&gt;&quot;&#x27;&amp;"
    assert tag("p", tag("b", "<"), "&", class_='a"b', hidden=None) == (
        '<p class="a&quot;b"><b>&lt;</b>&amp;</p>'
    )
    assert joined("<", tag("br")) == "&lt;<br>"


def test_list_of_names_has_commas_and_one_and() -> None:
    a, b, c = map(named, "ab<")
    assert listed([]) == ""
    assert listed([a]) == "<bdi>a</bdi>"
    assert listed([a, b]) == "<bdi>a</bdi> and <bdi>b</bdi>"
    assert listed([a, b, c]) == "<bdi>a</bdi>, <bdi>b</bdi> and <bdi>&lt;</bdi>"
