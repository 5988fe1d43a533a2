"""Server optimizers step a model's parameters; its buffers and integers are averaged."""

from typing import Any

import numpy as np
import pytest

from gradshard.cli import show
from gradshard_core.aggregation import batchnorm_buffers
from gradshard_core.aggregation.server_optimizers import OPTIMIZERS, parse_server_optimizer
from gradshard_core.errors import SpecError
from gradshard_core.formats.tensor_layout import Layout
from tests import reference
from tests.unit.model_rounds import MemoryFederation

MODEL = {
    "conv.weight": np.linspace(-1, 1, 1200, dtype="f4").reshape(30, 40),
    "bn.weight": np.ones(40, "f4"),
    "bn.running_mean": np.zeros(40, "f4"),
    "bn.running_var": np.ones(40, "f4"),
    "fc.weight": np.linspace(0, 1, 400, dtype="f4"),
    "bn.num_batches_tracked": np.array(0, "i8"),
}
BUFFERS = ("bn.num_batches_tracked", "bn.running_mean", "bn.running_var")
SAMPLES = [1, 3]
LAYOUT = Layout.pack(
    (name, {"f": "F32", "i": "I64"}[tensor.dtype.kind], tensor.shape)
    for name, tensor in MODEL.items()
)


@pytest.fixture
def federation(monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    return MemoryFederation(monkeypatch)


def shrinking(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return two clients' updates; both have seen variances of a hundredth of the model's."""
    updates = []
    for client in (1, 2):
        update = {name: np.full_like(tensor, 0.01 * client) for name, tensor in model.items()}
        update["bn.running_var"] = -0.99 * model["bn.running_var"]
        update["bn.num_batches_tracked"] = np.array(10, "i8")
        updates.append(update)
    return updates


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("terms", [{"shards": 1}, {"topology": "lambda_fl"}])
def test_statistics_are_averaged_with_every_optimizer(
    federation: MemoryFederation, optimizer: str, terms: dict[str, Any]
) -> None:
    assert set(federation.model.put(MODEL).buffers) == set(BUFFERS)
    expected: Any = MODEL
    state: Any = {}
    for number in range(1, 13):
        updates = shrinking(federation.tensors())
        federation.go(updates, SAMPLES, server_optimizer=optimizer, **terms)
        settings = parse_server_optimizer(optimizer).settings
        average = reference.average(updates, SAMPLES)
        expected, state = reference.step(
            optimizer, settings, number, expected, average, state, buffers=BUFFERS
        )
        for name, tensor in federation.tensors().items():
            assert tensor.tobytes() == expected[name].tobytes(), (number, name)
    assert federation.tensors()["bn.running_var"].min() > 0
    assert federation.tensors()["bn.num_batches_tracked"] == 120
    for name in parse_server_optimizer(optimizer).state:
        kept = federation.state(name)
        assert not any(kept[buffer].any() for buffer in BUFFERS)
        assert kept["conv.weight"].any()


def test_manifest_and_version_name_the_averaged_tensors(federation: MemoryFederation) -> None:
    federation.model.put(MODEL)
    version = federation.go(shrinking(MODEL), SAMPLES, server_optimizer="fedadam")
    assert set(version.buffers) == set(BUFFERS)
    assert federation.manifest["model"]["buffers"] == list(version.buffers)
    shown = dict(show._outcome(federation.manifest))["applied"]
    assert shown == f"3 tensors stepped by fedadam, 3 averaged ({', '.join(version.buffers)})"
    # And so does a version that is gone back to.
    federation.go(shrinking(federation.tensors()), SAMPLES, server_optimizer="fedadam")
    assert federation.model.roll_back(2).buffers == version.buffers


def test_averages_of_whole_models_are_the_buffers_to_the_bit(federation: MemoryFederation) -> None:
    federation.model.put(MODEL)
    sent = [{name: t + np.asarray(0.3).astype(t.dtype) for name, t in MODEL.items()}] * 2
    federation.go(sent, SAMPLES, server_optimizer={"optimizer": "fedyogi", "updates": "models"})
    average = reference.average(sent, SAMPLES)
    for name in BUFFERS:
        assert federation.tensors()[name].tobytes() == average[name].tobytes()


def test_a_round_names_the_buffers_and_the_next_ones_know_them(
    federation: MemoryFederation,
) -> None:
    model = {"w": np.ones(9, "f4"), "ema.w": np.ones(9, "f4"), "ema.v": np.ones(9, "f4")}
    federation.model.put(model)
    update = {name: np.full_like(tensor, -0.5) for name, tensor in model.items()}
    named = {"optimizer": "fedadam", "buffers": ["ema.*"]}
    assert federation.go([update], [1], server_optimizer=named).buffers == ("ema.w", "ema.v")
    assert federation.go([update], [1], server_optimizer="fedadam").buffers == ("ema.w", "ema.v")
    assert federation.tensors()["ema.v"].tolist() == [0.0] * 9
    # What is put there later has them, too, unless it says otherwise.
    assert federation.model.put(model).buffers == ("ema.w", "ema.v")
    assert federation.model.put(model, buffers=["ema.v"]).buffers == ("ema.v",)
    assert federation.go([update], [1], server_optimizer=named | {"buffers": []}).buffers == ()


def test_an_update_says_nothing_of_buffers(federation: MemoryFederation) -> None:
    federation.model.put({"w": np.ones(3, "f4")}, buffers=[])
    keys = federation.open(1, server_optimizer="fedadam")
    body = reference.encode({"w": np.ones(3, "f4")}, {"num_samples": "1", "buffers": '["w"]'})
    federation.store.put_bytes(keys.update("c0"), body)
    assert federation.go([{"w": np.ones(3, "f4")}], [1], server_optimizer="fedadam").buffers == ()


@pytest.mark.parametrize(
    "terms",
    [
        {"weights": "steps"},
        {
            "rule": {"name": "salf", "p": {"conv": 0.9, "bn": 0.5, "fc": 0.1}},
            "layers": ["conv", "bn", "fc"],
        },
    ],
)
def test_rules_that_stretch_updates_leave_averages_of_buffers(
    federation: MemoryFederation, terms: dict[str, Any]
) -> None:
    federation.model.put(MODEL)
    updates = shrinking(MODEL)
    federation.go(updates, SAMPLES, steps=[1, 1000], server_optimizer="fedavg", **terms)
    average = reference.average(updates, SAMPLES)
    made = federation.tensors()
    for name in BUFFERS:
        expected = MODEL[name] + average[name]
        assert made[name].tobytes() == expected.tobytes(), name
    # Parameters have the rule's weights.
    assert not np.allclose(made["bn.weight"], MODEL["bn.weight"] + average["bn.weight"])


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("bn.*", "buffers is 'bn.*', not a list"),
        ([""], "not a list of tensors' names or patterns"),
        ([3], "not a list of tensors' names or patterns"),
        (3, "buffers is 3, not a list"),
    ],
)
def test_patterns_that_are_none(stated: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("*", r"\*")):
        parse_server_optimizer({"buffers": stated})


def test_a_pattern_that_matches_nothing_is_rejected_at_opening(
    federation: MemoryFederation,
) -> None:
    message = "buffers: 'bm.*' matches none of the model's 6 tensors, of which "
    with pytest.raises(SpecError, match=message.replace("*", r"\*")):
        federation.model.put(MODEL, buffers=["bm.*"])
    assert federation.store.objects == {}
    federation.model.put(MODEL)
    keys = federation.open(1, server_optimizer={"buffers": ["bn.*", "bm.*"]})
    kind, reason = federation.rejected
    assert kind == "SpecError"
    assert message in reason
    assert federation.store.head(keys.spec) is None


def test_names_are_taken_as_they_stand_before_they_are_patterns() -> None:
    layout = Layout.pack([("a[0]", "F32", (1,)), ("a0", "F32", (1,))])
    assert batchnorm_buffers.named(layout, ["a[0]"]) == ("a[0]",)
    assert batchnorm_buffers.named(layout, ["a*"]) == ("a[0]", "a0")


@pytest.mark.parametrize(
    "name",
    [
        "layer1.0.bn.running_var",
        "running_mean",
        "bn/moving_variance:0",
        "batch_normalization.moving_mean",
        "batch_stats.BatchNorm_0.var",
    ],
)
def test_names_of_batchnorm_are_known(name: str) -> None:
    layout = Layout.pack([(name, "F32", (1,)), ("head.weight", "F32", (1,))])
    assert batchnorm_buffers.conventional(layout) == (name,)


def test_stretches_are_merged_and_clipped() -> None:
    names = ["bn.running_mean", "bn.running_var"]
    var_end = LAYOUT.tensors[3].end
    found = batchnorm_buffers.stretches_of(LAYOUT, names)
    assert found == (
        (LAYOUT.tensors[2].start, var_end),
        (LAYOUT.tensors[5].start, LAYOUT.nbytes),
    )
    assert set(batchnorm_buffers.names_in(LAYOUT, found)) == set(BUFFERS)
    assert list(batchnorm_buffers.clip_stretches(found, var_end - 4, LAYOUT.nbytes - 8)) == [
        (var_end - 4, var_end)
    ]
    assert list(batchnorm_buffers.clip_stretches(found, var_end, LAYOUT.nbytes - 8)) == []
    assert [batchnorm_buffers.is_in(found, p) for p in (0, var_end - 1, var_end)] == [
        False,
        True,
        False,
    ]
