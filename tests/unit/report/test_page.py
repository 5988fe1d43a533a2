"""The whole page of `gradshard report`."""

import itertools
import json
import re
import time
from typing import Any

import pytest

from gradshard.report.page import page
from gradshard.report.round_facts import Facts
from tests.unit.report.html_page import MADE_AT, read
from tests.unit.report_rounds import HOSTILE, sample

ROUNDS = {
    "one": lambda: [sample()],
    "a tree": lambda: [sample(groups=3)],
    "partial": lambda: [sample(layers=5)],
    "failed before planning": lambda: [sample(state="failed", cause="0", is_planned=False)],
    "failed in planning": lambda: [sample(state="failed", cause="0 good updates", done=0)],
    "failed in a task": lambda: [sample(state="failed", cause="task 3", done=0.5)],
    "awaiting": lambda: [sample(state="awaiting")],
    "aggregating": lambda: [sample(state="aggregating", done=0.5, shards=40)],
    "of one client": lambda: [sample(clients=1, shards=1)],
    "several": lambda: [sample("a"), sample("b", state="failed", cause="x", done=0)],
}


@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS.keys())
class TestEveryPage:
    def test_is_well_formed_and_loads_nothing(self, rounds: Any) -> None:
        found = read(*rounds())
        assert found.of("script") == []
        assert {element for element, _ in found.elements} & {
            "img",
            "iframe",
            "object",
            "form",
        } == set()
        for name, attributes in found.elements:
            for attribute in ("href", "src", "xlink:href"):
                address = attributes.get(attribute)
                assert address is None or address.startswith("#") or address == "data:,", name
        [policy] = [m for m in found.of("meta") if m.get("http-equiv")]
        assert policy["content"] == ("default-src 'none'; style-src 'unsafe-inline'; img-src data:")

    def test_screen_readers_get_names_headings_and_links(self, rounds: Any) -> None:
        found = read(*rounds())
        assert all(drawing["role"] == "img" for drawing in found.of("svg"))
        assert all(len(drawing["aria-label"] or "") > 20 for drawing in found.of("svg"))
        assert len(found.of("table")) == len(found.of("caption"))
        assert all("scope" in heading for heading in found.of("th"))
        assert found.count_rows_without_heading() == 0
        levels = [int(name[1]) for name, _ in found.elements if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        ids = {attributes.get("id") for _, attributes in found.elements}
        labelled = {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a}
        assert labelled <= ids
        assert {link["href"] for link in found.of("a")} <= {f"#{name}" for name in ids}

    def test_needs_only_json(self, rounds: Any) -> None:
        facts = rounds()
        assert page(json.loads(json.dumps(facts)), made_at=MADE_AT) == page(facts, made_at=MADE_AT)


def test_shows_settings_clients_and_times_of_a_round() -> None:
    text = read(sample(clients=8, shards=4)).text
    for words in (
        "8 of 12", "Round  r1", "M = 4", "44.7 MB", "62 tensors", "fedavg", "sequential",
        "mallory", "holds a NaN", "tardy", "gone-1", "2026-03-01 12:07:00 UTC",
        "98 MB projected", "256 MB", "2 cold starts", "7.1 s", "40", "$0.41",
    ):  # fmt: skip
        assert words in text, words


def test_shows_why_a_round_failed() -> None:
    text = read(sample(state="failed", cause="0 good updates", done=0)).text
    assert "QuorumError:  0 good updates" in text
    assert "No task has reported." in text


@pytest.mark.parametrize("where", ["name", "cause", "notes", "reason", "client", "layer"])
def test_text_of_clients_stays_text(where: str) -> None:
    facts = sample(layers=3, clients=4, state="failed", cause="because")
    if where == "client":
        facts["late"][0]["client"] = facts["rejected"][0]["client"] = HOSTILE
        facts["contributors"][0]["client"] = facts["missing"][0] = HOSTILE
        facts["uploads"][0]["client"] = HOSTILE
        facts["layers"][2]["weights"][HOSTILE] = 0.5
    elif where == "layer":
        facts["layers"][0]["name"] = HOSTILE
    elif where == "reason":
        facts["rejected"][0]["reason"] = facts["late"][0]["reason"] = HOSTILE
    else:
        key, value = {"name": ("round", HOSTILE), "cause": ("cause", HOSTILE)}.get(
            where, ("notes", [HOSTILE])
        )
        facts[key] = value
    plain, hostile = read(sample(layers=3, clients=4, state="failed", cause="because")), read(facts)
    known = {(name, *sorted(attributes)) for name, attributes in plain.elements}
    assert {(name, *sorted(attributes)) for name, attributes in hostile.elements} <= known
    assert r"""<script>alert(1)</script>"'\u202e\x1b[31m\n{x}</style>""" in hostile.text
    written = page([facts], made_at=MADE_AT)
    assert not {"\u202e", "\x1b", "<script"} & {*re.findall(r"\u202e|\x1b|<script", written)}


@pytest.fixture(scope="module")
def large() -> Facts:
    return sample(clients=1_000, groups=16, shards=588, layers=60)


class TestLargeRounds:
    def test_page_has_about_a_megabyte(self, large: Facts) -> None:
        began = time.process_time()
        written = page([large], made_at=MADE_AT)
        # Ten times the usual seconds.
        assert time.process_time() - began < 5
        assert len(large["tasks"]) == 9_996
        assert len(written.encode()) < 1_500_000

    def test_page_names_its_left_out_parts(self, large: Facts) -> None:
        text = read(large).text
        assert "Tasks that ran at the same time" in text
        assert "Tasks, the slowest first: 9,996 rows" in text
        assert "The first 1,000 of 9,996; gradshard report --json has them all." in text
        assert "means of several" in text

    @pytest.mark.slow
    def test_page_of_twenty_has_a_few_megabytes(self, large: Facts) -> None:
        assert len(page([large] * 20, made_at=MADE_AT).encode()) < 6_000_000

    def test_long_reasons_are_cut(self) -> None:
        text = read(sample(reason="x" * 8_000)).text
        assert "(7,000 more characters)" in text


class TestContents:
    def test_lists_rounds_by_their_names(self) -> None:
        found = read(sample("spring"), sample("summer"))
        links = [link["href"] for link in found.of("a")]
        assert links[-5:] == ["#comparison", "#round-1", "#round-2", "#round-1", "#round-2"]
        assert "Comparison spring summer" in found.words

    def test_of_one_round_lists_its_parts(self) -> None:
        found = read(sample(layers=2))
        assert [link["href"] for link in found.of("a")] == [
            f"#round-1-{part}" for part in ("clients", "tasks", "layers", "cost", "settings")
        ]


class TestFolding:
    def test_unfolds_the_clients_of_the_only_round(self) -> None:
        parts = [fold for fold in read(sample()).of("details") if fold["class"] == "part"]
        assert ["open" in part for part in parts] == [True, False, False, False]

    def test_folds_every_part_of_several_rounds(self) -> None:
        parts = read(sample("a"), sample("b")).of("details")
        assert [part for part in parts if "open" in part] == []
        assert len(parts) == 8

    def test_shows_the_main_facts_beside_a_folded_heading(self) -> None:
        text = read(sample()).text
        assert "8 of 12 counted · 1 rejected · 1 late · 2 missing · quorum 3" in text
        assert "4 of 4 done · aggregated in 7.1 s · 357.6 MB read" in text
