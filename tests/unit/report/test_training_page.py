"""The page of `gradshard train report`."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest

from gradshard.report.charts import SIDE, axis_between
from gradshard.report.training_facts import participation, training_facts
from gradshard.report.training_page import MAX_CURVES, training_page
from tests.unit.report.html_page import MADE_AT, Page
from tests.unit.report_rounds import HOSTILE
from tests.unit.report_trainings import STARTED, sample_status, sample_training

TRAININGS: dict[str, dict[str, Any]] = {
    "of 60 rounds": {},
    "before its first round": {"rounds": 0, "cause": None, "status": "running"},
    "paused": {"rounds": 3, "status": "paused", "cause": "round 't-00004' failed"},
    "of one client": {"rounds": 6, "clients": 1},
}


@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS.keys())
def test_every_page_is_well_formed_needs_only_json_and_loads_nothing(options: Any) -> None:
    facts = sample_training(**options)
    written = training_page(facts, made_at=MADE_AT)
    assert training_page(json.loads(json.dumps(facts)), made_at=MADE_AT) == written
    found = Page(written)
    assert found.of("script") == found.of("img") == []
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert {link["href"] for link in found.of("a")} <= {f"#{name}" for name in ids}
    assert all(len(drawing["aria-label"] or "") > 20 for drawing in found.of("svg"))
    assert len(found.of("table")) == len(found.of("caption"))
    assert found.count_rows_without_heading() == 0
    assert "nan" not in written.lower().replace("not count: nan", "")


def test_the_page_shows_curves_clients_cost_versions_and_causes() -> None:
    text = Page(training_page(sample_training(), made_at=MADE_AT)).words
    for words in (
        *("Training mnist has ended", "60 of 60 rounds completed in 1 h, for $0.0511 of $2"),
        *("1 round failed", "best accuracy 0.974, of version 56", "loss (training), by round"),
        *("accuracy (evaluation), by round", "best: 0.974 in round 55", "QuorumError: 3 good"),
        *("metrics of client-001 do not count", "Versions of model net", "56 best"),
        *("50 clients · silent: client-003", "rounds of training", "all 60 rounds have completed"),
    ):
        assert words in text, words


def test_dollars_and_participation_are_those_of_the_records() -> None:
    """From the definitions: sums over the records."""
    status = sample_status(rounds=9, clients=12)
    facts = training_facts(status, STARTED + timedelta(hours=1))
    for entry in facts["clients"]:
        records = status["rounds"]
        assert entry["invited"] == sum(entry["client"] in record["clients"] for record in records)
        assert entry["contributed"] == sum(
            entry["client"] in record["contributors"]
            for record in records
            if record["is_completed"]
        )
    assert sum(entry["rejected"] for entry in facts["clients"]) == 1
    assert participation([], {}, None) == []
    assert sum(r["dollars"] for r in facts["rounds"]) == pytest.approx(status["dollars"])


def test_a_buffered_training_invites_nobody_and_has_clients_all_the_same() -> None:
    status = sample_status(rounds=9, clients=12)
    status["spec"]["mode"], status["rejected"] = "buffered", {}
    for record in status["rounds"]:
        record["clients"], record["awaited"] = [], len(record["contributors"])
    facts = training_facts(status, STARTED)
    sent = {c for r in status["rounds"] for c in [*r["contributors"], *r["rejected"]]}
    assert {entry["client"] for entry in facts["clients"]} == sent
    assert all(r["invited"] == r["contributed"] > 0 for r in facts["rounds"])
    text = Page(training_page(facts, made_at=MADE_AT)).words
    assert "waited for" in text
    assert "invited" not in text
    assert "Staleness" not in text  # there is none


def test_the_staleness_of_a_buffered_training_is_shown_and_clients_have_all_their_updates() -> None:
    """A buffer may have several updates of a client, which have names of their own."""
    status = sample_status(rounds=3, clients=2)
    status["spec"]["mode"], status["rejected"] = "buffered", {}
    found = [{"ann@00000001": 0, "ann@00000002": 4}, {"bo@00000001": 1}, {"ann@00000003": 3}]
    for record, staleness in zip(status["rounds"], found, strict=False):
        record |= {"clients": [], "contributors": [*staleness], "rejected": []}
        record["staleness"] = staleness
    status["rounds"] = status["rounds"][:3]
    facts = training_facts(status, STARTED)
    counted = {entry["client"]: entry["contributed"] for entry in facts["clients"]}
    assert counted == {"ann": 3, "bo": 1}
    text = Page(training_page(facts, made_at=MADE_AT)).words
    assert "2.00 on average, at most 4" in text
    assert "Updates by staleness" in text


def test_a_few_metrics_are_drawn_with_the_deciding_one_first() -> None:
    """Clients may send new names in each round."""
    status = sample_status(rounds=4, clients=4)
    status["spec"]["stop"] = {"metric": "zz", "at_least": 1}
    for number, record in enumerate(status["rounds"]):
        record["metrics"] = {"loss": 1.0, **{f"a{number}-{n:02}": 1.0 for n in range(10)}}
    status["rounds"][0]["metrics"]["zz"] = 0.5
    text = Page(training_page(training_facts(status, STARTED), made_at=MADE_AT)).words
    assert text.count("(training), by round") == MAX_CURVES
    names = [text.index(f"{name} (training), by round") for name in ("zz", "loss", "a0-00")]
    assert names == sorted(names)
    assert "The JSON has 10 more metrics" in text


def test_updates_that_were_too_old_are_rejected_ones_of_their_clients() -> None:
    """No round has seen them. One that a round has rejected is among those of the inboxes."""
    status = sample_status(rounds=2, clients=2)
    status["spec"]["mode"] = "buffered"
    found = [({"ann": 0}, ["bo"]), ({"ann": 0, "bo": 1}, [])]
    for record, (staleness, bad) in zip(status["rounds"], found, strict=True):
        record |= {"clients": [], "contributors": [*staleness], "rejected": bad}
        record["staleness"] = staleness
    status["rejected"] = {"bo": 3, "slow": 7}
    # Whoever is invited to an evaluation has not sent anything yet.
    evaluation = status["rounds"][-1] | {"is_evaluation": True, "staleness": {}, "rejected": []}
    status["rounds"].append(evaluation | {"clients": ["ann", "bo"], "contributors": ["ann"]})
    rows = training_facts(status, STARTED)["clients"]
    names = ("client", "invited", "contributed", "rejected", "last_round")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("ann", 3, 3, 0, 2),
        ("bo", 4, 1, 3, 2),
        ("slow", 7, 0, 7, None),
    ]
    status["rejected"] = {}  # they have expired
    rows = training_facts(status, STARTED)["clients"]
    assert [(row["client"], row["rejected"]) for row in rows] == [("ann", 0), ("bo", 1)]


@pytest.mark.parametrize("where", ["training", "client", "metric", "cause", "notes"])
def test_text_of_clients_stays_text(where: str) -> None:
    status = sample_status(rounds=5, clients=4, status="paused", cause="x")
    record = status["rounds"][0]
    if where in {"training", "cause"}:
        status[where] = HOSTILE
    elif where == "client":
        record["clients"].append(HOSTILE)
    elif where == "metric":
        record["metrics"][HOSTILE] = 1.0
    else:
        record["notes"] = [HOSTILE]
    written = training_page(training_facts(status, STARTED), made_at=MADE_AT)
    Page(written)
    assert not re.findall(r"\u202e|\x1b|<script", written)
    assert "&lt;script&gt;" in written


def test_an_axis_of_negative_values_has_zero_and_all_of_them() -> None:
    for low, high in ((-2.0, 1.0), (-0.3, -0.1), (-1e6, 5.0)):
        found = axis_between(low, high, str)
        assert found.low <= low <= high <= found.high
        assert 0.0 in [value for value, _ in found.ticks]
        assert found.at(found.low) == 0
        assert found.at(found.high) == SIDE
    assert axis_between(0.2, 0.9, str).low == 0
