"""Flower's strategy with masked rounds: `make test-flower`."""

import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: `make test-flower`")

from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict

from gradshard import Federation, Keeper, Mask
from gradshard.flower import S3FedAvg, mask_of_node, s3_masked_mod, s3_mod
from gradshard.updates.mask_identity import make_identity
from gradshard_core.errors import SpecError, UpdateError
from tests import masked
from tests.flower.clients import DirectGrid, Model, client_app, model_of, record_of

if "AWS_ENDPOINT_URL" not in os.environ:
    pytest.skip("no local engine: `make test-flower`", allow_module_level=True)

NODES = (3, 5, 9)
FIRST = {"w": np.linspace(-1, 1, 40, dtype="f4").reshape(8, 5), "b": np.zeros(5, "f4")}


def trained(model: Model, node: int, server_round: int) -> tuple[Model, int]:
    rng = np.random.default_rng([node, server_round])
    changed = {name: (a + rng.normal(0, 1, a.shape)).astype("f4") for name, a in model.items()}
    return changed, 10 + node


def lost(model: Model, node: int, server_round: int) -> tuple[Model, int]:
    raise RuntimeError("the battery is empty")


def terms_of(keeper: Keeper) -> dict[str, Any]:
    terms = {"bound": 4.0, "bits": 16, "ring_bits": 32, "max_samples": 1000}
    return terms | {"keeper": keeper.public_key()}


def named(_grid: Any, nodes: Any) -> dict[int, str]:
    return {node: f"flower-{node}" for node in nodes}


def grid(keeper: Keeper, folder: Path, **others: Any) -> DirectGrid:
    apps = {}
    for node in NODES:
        client = f"flower-{node}"
        keeper.enrol(client, make_identity(folder / client))
        mask = Mask(folder / client, keeper.fingerprint())
        train = others.get(client.replace("-", ""), trained)
        apps[node] = client_app(train, [s3_masked_mod(partial(given, mask))])
    return DirectGrid(apps)


def given(mask: Mask, _context: Context) -> Mask:
    return mask


def start(strategy: S3FedAvg, clients: DirectGrid, rounds: int) -> Any:
    strategy.min_train_nodes = strategy.min_available_nodes = len(NODES)
    return strategy.start(clients, record_of(FIRST), num_rounds=rounds)


def masked_strategy(keeper: Keeper, **options: Any) -> S3FedAvg:
    run = f"masked-{uuid.uuid4().hex[:8]}"
    fixed: dict[str, Any] = {"client_names": named, "fraction_evaluate": 0.0}
    fixed |= {"masked": terms_of(keeper)}
    return S3FedAvg(Federation(), run=run, **fixed | options)


def test_models_are_the_plain_fixed_point_averages(tmp_path: Path) -> None:
    keeper = Keeper()
    strategy = masked_strategy(keeper)
    result = start(strategy, grid(keeper, tmp_path), 2)
    model: Any = FIRST
    for number in (1, 2):
        sent = [trained(model, node, number) for node in NODES]
        model = masked.average(terms_of(keeper), [m for m, _ in sent], [n for _, n in sent])
    assert {n: a.tobytes() for n, a in model_of(result.arrays).items()} == {
        n: a.tobytes() for n, a in model.items()
    }
    for metrics in result.train_metrics_clientapp.values():
        assert dict(metrics) == {
            "gradshard-contributors": 3,
            "gradshard-rejected": 0,
            "gradshard-missing": 0,
        }


def test_a_client_that_fails_costs_nothing(tmp_path: Path) -> None:
    keeper = Keeper()
    strategy = masked_strategy(keeper)
    result = start(strategy, grid(keeper, tmp_path, flower5=lost), 1)
    sent = [trained(FIRST, node, 1) for node in (3, 9)]
    expected = masked.average(terms_of(keeper), [m for m, _ in sent], [n for _, n in sent])
    assert model_of(result.arrays)["w"].tobytes() == expected["w"].tobytes()
    answer = keeper.answer(f"{strategy.run}-1")
    assert answer["clients"] == ["flower-3", "flower-5", "flower-9"]
    assert answer["summed"].keys() == {"flower-3", "flower-9"}


def telling(message: Any, context: Context, call_next: Any) -> Any:
    """A client's own mod, whose replies have more records."""
    reply = call_next(message, context)
    reply.content["own"] = ConfigRecord({"loss": 0.25})
    reply.content["more"] = MetricRecord({"num-examples": 7, "loss": 0.25})
    del reply.content["metrics"]
    return reply


def test_replies_tell_nothing_beside_the_masked_update(tmp_path: Path) -> None:
    keeper = Keeper()
    keeper.enrol("flower-3", make_identity(tmp_path / "key"))
    mask = Mask(tmp_path / "key", keeper.fingerprint())
    app = client_app(trained, [s3_masked_mod(partial(given, mask)), telling])
    clients = DirectGrid(dict.fromkeys(NODES, app))
    strategy = masked_strategy(keeper, client_names=lambda *_: {3: "flower-3", 5: "flower-5"})
    strategy.min_train_nodes = strategy.min_available_nodes = len(NODES)
    messages = list(strategy.configure_train(1, record_of(FIRST), ConfigRecord(), clients))
    [reply] = clients.send_and_receive(messages[:1])
    assert not reply.has_error(), reply.error
    assert dict(reply.content["more"]) == {"num-examples": 1}
    assert dict(reply.content["gradshard"]) == {"round": f"{strategy.run}-1"}
    assert len(reply.content) == 2


def test_a_client_that_masks_answers_nothing_else(tmp_path: Path) -> None:
    keeper = Keeper()
    clients = grid(keeper, tmp_path)
    plain = S3FedAvg(Federation(), run=f"plain-{uuid.uuid4().hex[:8]}", client_names=named)
    for server_round, kind in ((1, "train"), (1, "evaluate")):
        plain.min_train_nodes = plain.min_evaluate_nodes = plain.min_available_nodes = 3
        configure = getattr(plain, f"configure_{kind}")
        messages = configure(server_round, record_of(FIRST), ConfigRecord(), clients)
        replies = clients.send_and_receive(messages)
        reasons = {reply.error.reason for reply in replies}
        assert len(replies) == 3
        assert all("is not masked" in r or "would not be masked" in r for r in reasons), reasons
    assert list(plain.federation.stack.store.list_objects(f"rounds/{plain.run}-1/updates/")) == []


def test_a_client_without_a_mask_sends_nothing_to_a_masked_round(tmp_path: Path) -> None:
    keeper = Keeper()
    strategy = masked_strategy(keeper)
    clients = DirectGrid({node: client_app(trained, [s3_mod]) for node in NODES})
    start(strategy, clients, 1)
    assert list(Federation().stack.store.list_objects(f"rounds/{strategy.run}-1/updates/")) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rule": "median"}, "masked: leave out rule: rules look at single updates"),
        ({"codec": "int8"}, "masked: leave out codecs: a mask has no shorter form"),
        ({"dp": {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}}, "masked: leave out dp"),
        ({"max_samples": 5}, "masked: leave out max_samples"),
        ({"fraction_evaluate": 1.0}, "masked: give fraction_evaluate=0"),
        ({"masked": {"bound": 1.0}}, "masked lacks max_samples"),
    ],
)
def test_what_does_not_go_with_masks_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        masked_strategy(Keeper(), **options)


def test_a_node_without_a_key_is_told_how_to_configure_it() -> None:
    with pytest.raises(UpdateError, match="this node's configuration lacks keeper"):
        mask_of_node(Context(1, 7, {"mask-key": "a.key"}, RecordDict(), {}))
    mask = mask_of_node(Context(1, 7, {"mask-key": "a.key", "keeper": "00"}, RecordDict(), {}))
    assert (mask.signing_key, mask.keeper) == ("a.key", "00")
