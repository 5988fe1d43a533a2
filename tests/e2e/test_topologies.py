"""Trees and grids on the deployed application."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard import Federation
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.costs import aws_prices
from tests import reference
from tests.e2e.deployed import Deployed, until

pytestmark = pytest.mark.e2e

SECONDS = 120

COMMAND = Path(sys.executable).with_name("gradshard")
TYPES = sorted(reference.NUMPY)


def mixed(seed: int) -> dict[str, reference.Array]:
    """Make an update of all element types."""
    rng = np.random.default_rng(seed)
    return {
        f"t.{dtype}": reference.random_tensor(rng, dtype, (seed % 1 + 5, 11)) for dtype in TYPES
    }


def compare(name: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [COMMAND, "papers", "compare", name, "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_comparing_13_clients_of_uneven_counts_and_mixed_types(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("uneven", 13)
    samples = [1, 999, 5, 70, 2, 3, 3, 41, 8, 1000, 6, 12, 7]
    for number, count in enumerate(samples):
        round_.submit(f"c{number:02}", mixed(number), count)
    round_.wait(SECONDS)
    found = compare("uneven")
    assert (found["clients"], found["agrees"]) == (13, True)
    by_label = {outcome["label"]: outcome for outcome in found["outcomes"]}
    assert {label: o["order"] for label, o in by_label.items()} == {
        "shards": "sequential",
        "λ-FL": "tree:4,4",
        "shards tree:4,4": "tree:4,4",
        "LIFL": "tree:3,3,2",
        "shards tree:3,3,2": "tree:3,3,2",
        "grid": "tree:4,4",
    }
    assert by_label["λ-FL"]["digest"] == by_label["shards tree:4,4"]["digest"]
    assert by_label["LIFL"]["digest"] == by_label["shards tree:3,3,2"]["digest"]
    assert len({outcome["digest"] for outcome in found["outcomes"]}) == 3
    # What the machine was charged for is what the cost model counts: see pricing.
    for outcome in found["outcomes"]:
        batch = int(deployed.outputs["MapConcurrency"])
        children = sum(-(-len(sizes) // batch) for sizes in outcome["groups"])
        levels = len(outcome["groups"])
        assert outcome["transitions"] == (
            aws_prices.ROUND_TRANSITIONS + aws_prices.LEVEL_TRANSITIONS * levels + children
        )
    tree, alone = by_label["λ-FL"], by_label["shards"]
    assert (tree["tasks"], tree["gets"]) == (5, 13 + 4 + 5)
    assert (alone["tasks"], alone["gets"]) == (1, 13 + 1)
    assert (tree["puts"], alone["puts"]) == (10, 2)
    assert tree["bytes_read"] > alone["bytes_read"]
    assert tree["bill"]["total"] > alone["bill"]["total"] > 0
    # Nothing of the trials is left.
    assert [key for key in deployed.keys("rounds/uneven-") if key] == []


def test_one_order_for_all_gives_one_digest(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("ordered", 6)
    for number in range(6):
        round_.submit(f"c{number}", mixed(number), number + 1)
    round_.wait(SECONDS)
    found = compare("ordered", "--order", "tree:2,3")
    outcomes = found["outcomes"]
    done = [outcome for outcome in outcomes if "rejected" not in outcome]
    assert [outcome["label"] for outcome in done] == ["shards", "λ-FL", "LIFL", "grid"]
    assert len({outcome["digest"] for outcome in done}) == 1
    # Nothing of the trials is left.
    assert deployed.keys("rounds/ordered-") == []


def test_200_clients_make_a_grid(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    updates = [{"w": np.random.default_rng(i).standard_normal(999, np.float32)} for i in range(200)]
    round_ = federation.open_round("crowd", 200)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: round_.submit(f"c{i:03}", updates[i], i + 1), range(200)))
    manifest = round_.wait(2 * SECONDS)
    assert (manifest["topology"], manifest["order"]) == ("grid", "tree:50,4")
    assert len(manifest["contributors"]) == 200
    expected = reference.average(updates, range(1, 201), tree=[50, 4])
    assert round_.fetch()["w"].tobytes() == expected["w"].tobytes()
    # The manifest is there before the last function has cleaned up.
    deployed.ended("crowd")
    assert deployed.keys("rounds/crowd/partial-sums/") == []


def test_an_eager_leaf_runs_while_others_train(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    clients = [f"c{i}" for i in range(4)]
    round_ = federation.open_round(
        "eager",
        clients,
        topology="lifl",
        eager=True,
        weights="counts",
        timeout=600,
        layout=mixed(0),
    )
    updates = [mixed(i) for i in range(4)]
    for i in (0, 1):
        round_.submit(clients[i], updates[i], i + 1)
    until(lambda: deployed.keys("rounds/eager/task-reports/0/"))
    assert round_.status()["state"] == "aggregating"
    for i in (3, 2):
        round_.submit(clients[i], updates[i], i + 1)
    manifest = round_.wait(SECONDS)
    assert manifest["groups"] == [[2, 2], [2]]
    fetched = round_.fetch()
    expected = reference.average(updates, [1, 2, 3, 4], tree=[2, 2], counts=True)
    for name, tensor in expected.items():
        assert fetched[name].tobytes() == tensor.tobytes()


def test_an_eager_round_ends_at_its_deadline(engine: Engine, federation: Federation) -> None:
    clients = [f"c{i}" for i in range(4)]
    round_ = federation.open_round(
        "hasty",
        clients,
        topology="lambda_fl",
        eager=True,
        weights="counts",
        timeout=8,
        layout=mixed(0),
    )
    for i in (0, 1, 3):
        round_.submit(clients[i], mixed(i), i + 1)
    manifest = round_.wait(SECONDS)
    opened, finished = (
        datetime.fromisoformat(manifest[f"{name}_at"]) for name in ("opened", "finished")
    )
    assert finished - opened >= timedelta(seconds=8)
    assert manifest["groups"] == [[2, 1], [2]]
    assert manifest["missing"] == ["c2"]
