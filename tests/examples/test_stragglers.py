"""examples/salf.py and examples/amble.py without an engine, and a short run of each."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import amble
import salf
from gradshard_core.stragglers.layer_reach import UniformDepth
from gradshard_core.stragglers.salf import PartialRule
from stragglers import clock, network, splits
from stragglers.backends import InMemory
from stragglers.clock import Clock, Device
from stragglers.curves import Curve, Panel, svg
from tests import reference

SIZES = (64, 32, 16, 10)


def parse(drawing: str) -> ET.Element:
    return ET.fromstring(drawing)  # noqa: S314 - of our own making


def test_gradients_of_the_networks_last_layers_are_those_of_finite_differences() -> None:
    """What a straggler sends is right: the layers below change nothing in it."""
    rng = np.random.default_rng(0)
    model = {n: v.astype(np.float64) for n, v in network.initialise((6, 5, 4, 3), 1).items()}
    images, labels = rng.standard_normal((7, 6)), rng.integers(0, 3, 7)
    step = 1e-6

    for number, (name, gradient) in enumerate(network.backpropagate(model, images, labels)):
        if number == 4:
            break
        for index in np.ndindex(gradient.shape):
            up, down = (model | {name: model[name].copy()} for _ in range(2))
            up[name][index] += step
            down[name][index] -= step
            slope = (network.loss(up, images, labels) - network.loss(down, images, labels)) / step
            assert gradient[index] == pytest.approx(slope / 2, rel=1e-5, abs=1e-8)


def test_an_iid_split_gives_shares_alike_in_size_and_digits() -> None:
    digits = splits.load(splits.IID, 7, seed=1)

    sizes = [len(images.labels) for images in digits.clients.values()]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) + len(digits.test.labels) == 1797
    for images in digits.clients.values():
        assert np.bincount(images.labels, minlength=10).max() < 0.25 * len(images.labels)


def test_a_non_iid_split_gives_shares_unlike_in_digits() -> None:
    digits = splits.load(splits.NON_IID, 7, seed=1)

    shares = [
        np.bincount(images.labels, minlength=10).max() / len(images.labels)
        for images in digits.clients.values()
    ]
    assert np.mean(shares) > 0.3
    assert len(digits.clients) == 7


@pytest.mark.parametrize("split", splits.SPLITS)
def test_a_split_depends_on_its_seed_alone(split: str) -> None:
    once, again, other = (splits.load(split, 5, seed) for seed in (1, 1, 2))

    for client, images in once.clients.items():
        assert np.array_equal(images.images, again.clients[client].images)
    assert not all(
        np.array_equal(images.images, other.clients[client].images)
        for client, images in once.clients.items()
    )


def test_ids_sort_as_the_clients_do() -> None:
    assert splits.names(12) == sorted(splits.names(12))


def test_a_device_is_faster_by_its_speed_and_by_larger_batches() -> None:
    slow, fast = Device(1.0), Device(4.0)

    assert slow.seconds(100, 16, 1) == pytest.approx(7 * 0.008 + 100 * 0.001)
    assert fast.seconds(100, 16, 3) == pytest.approx(3 * slow.seconds(100, 16, 1) / 4)
    assert slow.seconds(100, 50, 1) < slow.seconds(100, 16, 1)


def test_devices_have_all_speeds_from_one_to_the_fastest_at_random() -> None:
    clients = splits.names(5)

    speeds = [device.speed for device in clock.devices(clients, 8.0, seed=0).values()]

    assert sorted(speeds) == pytest.approx(np.geomspace(1, 8, 5).tolist())
    assert speeds != [device.speed for device in clock.devices(clients, 8.0, seed=1).values()]


def test_a_round_lasts_as_long_as_its_slowest_device_and_the_others_idle() -> None:
    time = Clock()

    time.round({"a": 4.0, "b": 1.0})
    time.round({"a": 1.0, "b": 2.0})

    assert time.now == 6.0
    assert time.idle_share == pytest.approx(1 - 8 / 12)


def test_averages_in_memory_have_the_bits_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    shapes = {name: array.shape for name, array in network.initialise(SIZES, 0).items()}
    updates = {
        client: {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        for client in ("b", "a", "c")
    }
    samples = {"a": 10, "b": 3, "c": 7}

    found = InMemory().average(updates, samples)

    ordered = sorted(updates)
    expected = reference.average([updates[c] for c in ordered], [samples[c] for c in ordered])
    assert all(found[name].tobytes() == expected[name].tobytes() for name in shapes)


def test_partial_averages_are_written_down_anew() -> None:
    model = network.initialise(SIZES, 0)
    complete = {"a": model, "b": {name: 2 * array for name, array in model.items()}}
    last = {n: a for n, a in complete["b"].items() if n.startswith("layer2")}
    clients = ["a", "b", "c"]

    found = InMemory().average_partial(
        {"a": {n: a for n, a in model.items() if not n.startswith("layer0")}, "b": last},
        {"a": 1, "b": 1},
        PartialRule("salf", UniformDepth()),
        clients,
        model,
    )

    assert not found["layer0.weight"].any()
    # p = (1 - 2 / 3)^3 in the middle, 0 at the end.
    np.testing.assert_allclose(found["layer1.weight"], model["layer1.weight"] / (1 - 1 / 27), 1e-6)
    np.testing.assert_allclose(found["layer2.bias"], 1.5 * model["layer2.bias"], 1e-6)
    assert found.keys() == model.keys()


def test_a_straggler_sends_the_last_layers_and_the_others_all() -> None:
    setting = salf.Setting(splits.IID, 6, 4)
    digits = splits.load(splits.IID, 6, seed=0)
    depths = setting.depths(np.random.default_rng(0))

    updates = salf.Clients(digits, seed=0).train(network.initialise(SIZES, 0), depths)

    assert depths[4:] == [3, 3]
    assert all(1 <= depth <= 3 for depth in depths)
    for update, depth in zip(updates.values(), depths, strict=True):
        layers = {name.partition(".")[0] for name in update}
        assert layers == {f"layer{3 - number}" for number in range(1, depth + 1)}


def test_depths_come_as_often_as_the_rule_is_told() -> None:
    setting = salf.Setting(splits.IID, 2, 1)
    rng = np.random.default_rng(0)

    depths = np.array([setting.depths(rng) for _ in range(3000)])

    reach = setting.reach().probabilities
    assert reach["client-02"] == 1.0
    assert reach["client-01"] == {"layer0": 1 / 3, "layer1": 2 / 3, "layer2": 1.0}
    assert (depths[:, 0] >= 2).mean() == pytest.approx(2 / 3, abs=0.04)
    assert (depths[:, 0] >= 3).mean() == pytest.approx(1 / 3, abs=0.04)


def test_salf_learns_and_writes_a_plot_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    monkeypatch.setattr(
        sys, "argv", f"salf.py -o {folder} --rounds 15 --seeds 2 --clients 6".split()
    )

    assert salf.main() == 0

    numbers = json.loads((folder / "salf.json").read_text())
    assert len(numbers["panels"]) == 3
    for curves in numbers["panels"].values():
        assert list(curves) == list(salf.RULES)
        for curve in curves.values():
            assert len(curve["x"]) == len(curve["mean"]) == len(curve["spread"]) == 15
            assert curve["mean"][-1] > curve["mean"][0]
    assert parse((folder / "salf.svg").read_text()).tag.endswith("svg")


def test_amble_saves_idle_time_and_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", f"amble.py -o {tmp_path} --rounds 6 --seeds 1 --clients 4".split()
    )

    assert amble.main() == 0

    numbers = json.loads((tmp_path / "amble.json").read_text())
    for curves in numbers["panels"].values():
        assert list(curves) == list(amble.WAYS)
        fedavg, assigned = curves[amble.FEDAVG], curves[amble.AMBLE]
        assert fedavg["epochs_per_round"] == [1.0]
        assert assigned["epochs_per_round"][0] > 1.5
        assert assigned["idle_share"][0] < fedavg["idle_share"][0] - 0.1
    assert parse((tmp_path / "amble.svg").read_text()).tag.endswith("svg")


def test_the_same_seed_trains_the_same() -> None:
    first, again = (
        amble.train(amble.AMBLE, amble.BASE, splits.NON_IID, 3, 8.0, 3, 7, InMemory())
        for _ in range(2)
    )

    assert np.array_equal(first.accuracies, again.accuracies)
    assert np.array_equal(first.seconds, again.seconds)


def test_accuracy_holds_until_the_next_round_has_ended() -> None:
    run = amble.Run(np.array([1.0, 3.0]), np.array([0.5, 0.9]), 0.0, 1.0)

    assert run.at(np.array([0.0, 1.0, 2.9, 3.0, 9.0])).tolist() == [0.0, 0.5, 0.5, 0.9, 0.9]
    assert run.seconds_to(0.9) == 3.0
    assert run.seconds_to(0.95) is None


def test_a_plot_labels_every_curve_apart() -> None:
    x = np.arange(1.0, 11.0)
    curves = [Curve.of(name, x, [x / 10, x / 10]) for name in ("one", "two", "three")]

    drawn = parse(svg("title", [Panel("panel", "round", curves)]))

    labels = [e for e in drawn.iter() if e.text in ("one", "two", "three")]
    heights = sorted(float(e.attrib["y"]) for e in labels)
    assert len(heights) == 3
    assert min(np.diff(heights)) >= 16
