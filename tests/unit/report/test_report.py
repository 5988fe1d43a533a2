"""The page about rounds, and the facts behind it."""

import itertools
import json
import re
import time
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from gradshard.report import charts
from gradshard.report.facts import Facts, compared, facts_of
from gradshard.report.markup import joined, tag, text
from gradshard.report.page import page
from gradshard.report.sections import _gantt
from gradshard_core.planning.pricing import US_EAST_1, around
from tests.unit.in_memory import OPENED as OPENED_ROUND
from tests.unit.in_memory import Machine
from tests.unit.report_rounds import HOSTILE, OPENED, PLANNED, sample

VOID = {"br", "link", "meta"}
MADE_AT = "2026-03-01 13:00 UTC"


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order, and no id is there twice."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data + " "

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(*rounds: Facts) -> Page:
    return Page(page(rounds, made_at=MADE_AT))


ROUNDS = {
    "one": lambda: [sample()],
    "a tree": lambda: [sample(groups=3)],
    "partial": lambda: [sample(layers=5)],
    "failed in planning": lambda: [sample(state="failed", cause="0 good updates", done=0)],
    "failed in a task": lambda: [sample(state="failed", cause="task 3", done=0.5)],
    "awaiting": lambda: [sample(state="awaiting")],
    "aggregating": lambda: [sample(state="aggregating", done=0.5, shards=40)],
    "of one client": lambda: [sample(clients=1, shards=1)],
    "several": lambda: [sample("a"), sample("b", state="failed", cause="x", done=0)],
}


@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS.keys())
class TestEveryPage:
    def test_is_well_formed_and_asks_nobody_for_anything(self, rounds: Any) -> None:
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

    def test_has_words_for_those_who_do_not_see_it(self, rounds: Any) -> None:
        found = read(*rounds())
        assert all(drawing["role"] == "img" for drawing in found.of("svg"))
        assert all(len(drawing["aria-label"] or "") > 20 for drawing in found.of("svg"))
        assert len(found.of("table")) == len(found.of("caption"))
        assert all("scope" in heading for heading in found.of("th"))
        levels = [int(name[1]) for name, _ in found.elements if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        ids = {attributes.get("id") for _, attributes in found.elements}
        labelled = {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a}
        assert labelled <= ids
        assert {link["href"] for link in found.of("a")} <= {f"#{name}" for name in ids}

    def test_stands_on_json(self, rounds: Any) -> None:
        facts = rounds()
        assert page(json.loads(json.dumps(facts)), made_at=MADE_AT) == page(facts, made_at=MADE_AT)


def test_says_what_a_round_was_and_took() -> None:
    text = read(sample(clients=8, shards=4)).text
    for words in (
        "8 of 12", "Round  r1", "M = 4", "44.7 MB", "62 tensors", "fedavg", "sequential",
        "mallory", "holds a NaN", "tardy", "gone-1", "2026-03-01 12:07:00 UTC",
    ):  # fmt: skip
        assert words in text, words


def test_says_why_a_round_failed() -> None:
    text = read(sample(state="failed", cause="0 good updates", done=0)).text
    assert "QuorumError:  0 good updates" in text
    assert "No task has reported." in text


@pytest.mark.parametrize("where", ["name", "cause", "notes", "reason", "client", "layer"])
def test_what_clients_wrote_stays_text(where: str) -> None:
    facts = sample(layers=3, clients=4, state="failed", cause="because")
    if where == "client":
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


def test_markup_escapes_all_but_markup() -> None:
    assert text("<b>\"'&") == "&lt;b&gt;&quot;&#x27;&amp;"
    assert tag("p", tag("b", "<"), "&", class_='a"b', hidden=None) == (
        '<p class="a&quot;b"><b>&lt;</b>&amp;</p>'
    )
    assert joined("<", tag("br")) == "&lt;<br>"


@pytest.fixture(scope="module")
def large() -> Facts:
    return sample(clients=1_000, groups=16, shards=588, layers=60)


class TestLargeRounds:
    def test_make_a_page_of_a_megabyte(self, large: Facts) -> None:
        began = time.process_time()
        written = page([large], made_at=MADE_AT)
        # Ten times what it takes.
        assert time.process_time() - began < 5
        assert len(large["tasks"]) == 9_996
        assert len(written.encode()) < 1_500_000

    def test_say_what_is_drawn_and_listed_together(self, large: Facts) -> None:
        text = read(large).text
        assert "the largest of 87 in a row" in text
        assert "The first 1,000 of 9,996; gradshard report --json has them all." in text
        assert "means of several" in text

    def test_many_of_them_make_a_page_of_a_few(self, large: Facts) -> None:
        assert len(page([large] * 20, made_at=MADE_AT).encode()) < 6_000_000

    def test_long_reasons_are_cut(self) -> None:
        text = read(sample(reason="x" * 8_000)).text
        assert "(7,000 more characters)" in text


@pytest.mark.filterwarnings("ignore:No application metrics")
def test_a_task_says_when_it_began(machine: Machine) -> None:
    machine.open(clients=4, topology="lambda_fl")
    for name in "abcd":
        machine.submit(name, {"w": np.ones(1, "f4")})
    assert machine.turn(OPENED_ROUND) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    stated = [task["started_at"] for task in manifest["tasks"]]
    assert all(re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}\+00:00", at) for at in stated)
    planned, *started, finished = map(
        datetime.fromisoformat, (manifest["planned_at"], *stated, manifest["finished_at"])
    )
    # The two of the leaves and then the root's; to the millisecond, which is cut off.
    assert len(started) == 3
    moments = [planned - timedelta(milliseconds=1), *started, finished]
    assert moments == sorted(moments)


class TestFacts:
    def test_a_tasks_beginning_is_what_its_function_says(self) -> None:
        written = {**sample()["tasks"][0], "started_at": "2026-11-20T12:00:01.234+00:00"}
        [task] = again(tasks=[{**written, "seconds": 0.512}])["tasks"]
        assert task["started_at"] == "2026-11-20T12:00:01.234+00:00"
        assert task["ended_at"] == "2026-11-20T12:00:01.746000+00:00"

    def test_tasks_of_less_than_a_second_are_drawn_where_they_ran(self) -> None:
        """Not where a clock of whole seconds has them: one behind the other, side by side."""
        one = {**sample()["tasks"][0], "seconds": 0.1}
        starts = [(PLANNED + timedelta(milliseconds=ms)).isoformat() for ms in (100, 300, 500)]
        tasks = [{**one, "task": n, "started_at": at} for n, at in enumerate(starts)]
        drawn = str(_gantt(again(tasks=tasks)))
        bars = re.findall(r"M([0-9.]+) [0-9.]+v-[0-9.]+h([0-9.]+)v", drawn)
        found = sorted((float(x), float(x) + float(width)) for x, width in bars)
        assert len(found) == 3
        assert all(before[1] < after[0] for before, after in itertools.pairwise(found))

    def test_uploads_come_with_what_became_of_them(self) -> None:
        fates = {upload["client"]: upload["fate"] for upload in sample(clients=2)["uploads"]}
        assert fates == {
            "client-0000": "counted",
            "client-0001": "counted",
            "mallory": "rejected",
            "tardy": "late",
        }

    def test_an_upload_that_was_replaced_after_planning_has_no_time(self) -> None:
        facts = again(arrived=[upload("a", etag="newer")], contributors={"a": "planned"})
        assert facts["contributors"][0]["arrived_at"] is None
        assert [found["fate"] for found in facts["uploads"]] == ["unused"]

    def test_a_partial_update_counts_where_no_finished_one_does(self) -> None:
        facts = again(partial_updates=[upload("a", etag="grown")], contributors={"a": "grown"})
        assert facts["contributors"][0]["arrived_at"] == OPENED.isoformat()
        both = again(
            arrived=[upload("a", etag="done")],
            partial_updates=[upload("a", etag="grown")],
            contributors={"a": "done"},
        )
        assert len(both["uploads"]) == 1

    def test_dollars_as_measured_are_those_of_the_tasks(self) -> None:
        one, two = (again(tasks=[task(seconds)])["dollars"]["measured"] for seconds in (1.0, 2.0))
        # 256 MB on arm64.
        assert two["lambda"] - one["lambda"] == pytest.approx(0.25 * 0.0000133334)
        assert again(tasks=[])["dollars"]["measured"] is None

    def test_dollars_as_measured_have_what_applying_takes_besides(self) -> None:
        plain, applied = (
            again(tasks=[task(1.0)], server_optimizer=apply)["dollars"]["measured"]
            for apply in (None, {"optimizer": "fedadam"})
        )
        # The model and two objects of state, as the planner counts them.
        besides = US_EAST_1.s3(around([1], 1, models=3)) - US_EAST_1.s3(around([1], 1))
        assert besides > 0
        assert applied["round"] - plain["round"] == pytest.approx(besides)

    def test_a_round_that_was_not_planned_has_the_terms_it_was_opened_with(self) -> None:
        facts = facts_of(
            {
                "round": "r", "state": "awaiting", "cause": None, "manifest": None, "plan": None,
                "opened_at": OPENED.isoformat(), "deadline_at": None, "tasks_done": 0,
                "arrived": [upload("a")], "missing": ["b"], "rejected": [], "late": [],
                "spec": {"clients": ["a", "b"], "rule": {"name": "salf", "p": 0.2}},
            },
            plan=None, tasks=[], partial_updates=[], architecture="arm64",
        )  # fmt: skip
        assert (facts["rule"], facts["topology"], facts["expected"]) == ("salf", "auto", 2)
        assert facts["uploads"][0]["fate"] == "waiting"
        assert facts["missing"] == ["b"]

    def test_rounds_compare_by_what_is_known(self) -> None:
        done, failed = compared([sample(clients=3), sample(state="failed", cause="x", done=0)])
        assert done["contributors"] == 3
        assert done["dollars"] > 0
        assert (failed["dollars"], failed["cold_starts"]) == (None, None)
        text = read(sample("a"), sample("b", state="failed", cause="x", done=0)).text
        assert "unknown" in text


def upload(client: str, etag: str = "e") -> dict[str, Any]:
    return {"client": client, "nbytes": 5, "etag": etag, "arrived_at": OPENED.isoformat()}


def task(seconds: float) -> dict[str, Any]:
    return {**sample()["tasks"][0], "seconds": seconds}


def again(
    *,
    tasks: list[dict[str, Any]] | None = None,
    arrived: list[dict[str, Any]] | None = None,
    partial_updates: list[dict[str, Any]] | None = None,
    contributors: dict[str, str] | None = None,
    server_optimizer: Any = None,
) -> Facts:
    """Return the facts of a completed round that has just this."""
    entries = [
        {"client": client, "samples": 1, "weight": 1.0, "source": {"nbytes": 5, "etag": etag}}
        for client, etag in (contributors or {"a": "e"}).items()
    ]
    manifest = {"finished_at": PLANNED.isoformat()}
    plan = {
        "attempt": 0, "levels": [{"groups": [[0, 1]]}], "nbytes": 5, "header_bytes": 8,
        "tensors": 1, "shards": 1, "planned_at": PLANNED.isoformat(), "layers": [],
        "contributors": entries, "projected": {"memory_mb": 256, "dollars": None},
    }  # fmt: skip
    return facts_of(
        {
            "round": "r", "state": "completed", "cause": None, "manifest": manifest,
            "plan": {"tasks": 1}, "opened_at": OPENED.isoformat(), "deadline_at": None,
            "tasks_done": 1, "arrived": arrived or [], "missing": [], "rejected": [], "late": [],
            "spec": {"clients": 1, "server_optimizer": server_optimizer},
        },
        plan=plan, tasks=tasks or [], partial_updates=partial_updates or [], architecture="arm64",
    )  # fmt: skip


class TestCharts:
    @pytest.mark.parametrize(
        ("high", "ticks"),
        [
            (0, ["0", "0.25", "0.5", "0.75", "1"]),
            (7, ["0", "2", "4", "6", "8"]),
            (0.03, ["0", "0.01", "0.02", "0.03"]),
            (1000, ["0", "250", "500", "750", "1000"]),
        ],
    )
    def test_an_axis_has_round_numbers_and_holds_the_highest(
        self, high: float, ticks: list[str]
    ) -> None:
        found = charts.axis(high, lambda value: f"{value:g}")
        assert [label for _, label in found.ticks] == ticks
        assert found.high >= high

    def test_an_axis_of_whole_numbers_has_no_halves(self) -> None:
        assert [tick for tick, _ in charts.axis(1, str, whole=True).ticks] == [0, 1]

    @pytest.mark.parametrize("high", [0.01, 1, 39, 41, 61, 3_600, 100_000, 604_800, 5_000_000])
    def test_an_axis_of_time_holds_the_latest(self, high: float) -> None:
        found = charts.time_axis(high)
        assert found.high >= high
        assert 2 <= len(found.ticks) <= 60

    def test_bins_hold_everything_once(self) -> None:
        for count, most in ((0, 5), (3, 5), (5, 5), (11, 5), (10_000, 120)):
            pieces = charts.bins(count, most)
            assert [n for piece in pieces for n in piece] == list(range(count))
            assert len(pieces) <= most

    def test_a_heat_map_leaves_out_what_is_not_there(self) -> None:
        drawn = "".join(charts.heat_map([[None, 1.0], [0.5, None]], "c0"))
        assert drawn.count("M") == 2
        assert charts.heat_map([[None]], "c0") == []
