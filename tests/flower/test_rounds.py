"""Flower's strategies over real rounds: `make test-flower`."""

import logging
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: `make test-flower`")

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from safetensors.numpy import load_file

from gradshard import Federation
from gradshard.flower import RECORD, S3FedAvg, s3_mod
from gradshard_core.errors import RoundFailed
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.records.privacy_ledger import PrivacyBudget, change_ledger
from tests import compressed, reference
from tests.flower.clients import DirectGrid, Model, client_app, model_of, record_of

if "AWS_ENDPOINT_URL" not in os.environ:
    pytest.skip("no local engine: `make test-flower`", allow_module_level=True)

NODES = (7, 30, 100, 2**63 + 11)


def initial() -> Model:
    rng = np.random.default_rng(0)
    return {
        "second": rng.standard_normal((30, 7), np.float32),
        "first": rng.standard_normal(11),
        "scalar": np.array(0.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def trained(model: Model, node: int, server_round: int) -> tuple[Model, float]:
    rng = np.random.default_rng([node, server_round])
    changed = {
        name: (array + rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    }
    return changed, 10 + node % 17


def grid(**others: Any) -> DirectGrid:
    """Four clients; ``node7=…`` gives one another app."""
    apps = {node: client_app(trained, [s3_mod]) for node in NODES}
    return DirectGrid(apps | {int(name.removeprefix("node")): app for name, app in others.items()})


def s3(**options: Any) -> S3FedAvg:
    return S3FedAvg(Federation(), run=f"t-{uuid.uuid4().hex[:8]}", **options)


def train(strategy: FedAvg, clients: DirectGrid, rounds: int = 1) -> Any:
    strategy.min_train_nodes = strategy.min_available_nodes = len(NODES)
    return strategy.start(clients, record_of(initial()), num_rounds=rounds)


def bits(model: ArrayRecord) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    arrays = model_of(model).items()
    return [(name, str(a.dtype), a.shape, a.tobytes()) for name, a in arrays]


class TestWithoutTrouble:
    def test_bits_and_metrics_are_those_of_flowers_fedavg(self) -> None:
        ours, theirs = train(s3(), grid(), 2), train(FedAvg(), grid(), 2)
        assert bits(ours.arrays) == bits(theirs.arrays)
        for metrics in ours.train_metrics_clientapp.values():
            assert metrics.pop("gradshard-contributors") == len(NODES)
            assert (metrics.pop("gradshard-rejected"), metrics.pop("gradshard-missing")) == (0, 0)
        assert ours.train_metrics_clientapp == theirs.train_metrics_clientapp
        assert ours.evaluate_metrics_clientapp == theirs.evaluate_metrics_clientapp

    @pytest.mark.parametrize("codec", CODECS)
    def test_a_codec_gives_the_average_of_what_was_sent(self, codec: str) -> None:
        strategy = s3(codec=codec)
        result = train(strategy, grid())
        round_ = strategy.federation.round(f"{strategy.run}-1")
        contributors = round_.wait()["contributors"]
        assert {entry["codec"] for entry in contributors} == {codec}
        bodies = [round_.store.get_bytes(entry["key"]) for entry in contributors]
        sent = [compressed.read(body) for body in bodies if body is not None]
        expected = reference.average(sent, [entry["samples"] for entry in contributors])
        found = model_of(result.arrays)
        assert {n: a.tobytes() for n, a in found.items()} == {
            n: expected[n].tobytes() for n in found
        }

    def test_no_model_is_in_a_message(self) -> None:
        large = {"w": np.zeros(1_000_000, np.float32)}
        clients = grid()
        strategy = s3()
        strategy.start(clients, record_of(large), num_rounds=1)
        assert clients.bytes_sent < 100_000
        assert clients.bytes_replied < 1_000

    def test_the_server_need_not_have_the_averages(self, tmp_path: Path) -> None:
        strategy = s3(keep_arrays=False)
        result = train(strategy, grid(), 2)
        assert not result.arrays
        kept = train(s3(), grid(), 2).arrays
        assert bits(strategy.fetch()) == bits(kept)
        read = load_file(strategy.fetch(tmp_path / "model.safetensors"))
        assert {name: a.tobytes() for name, a in read.items()} == {
            name: a.tobytes() for name, a in model_of(kept).items()
        }

    def test_a_server_optimiser_goes_on_from_the_average(self) -> None:
        class S3FedAdam(FedAdam, S3FedAvg):
            pass

        ours = S3FedAdam(eta=0.3)
        ours.run = f"t-{uuid.uuid4().hex[:8]}"
        result = train(ours, grid(), 2)
        assert bits(result.arrays) == bits(train(FedAdam(eta=0.3), grid(), 2).arrays)

    def test_private_rounds_change_the_model_by_the_average_with_noise(self) -> None:
        """With so wide a clip and so little noise that both can be told from the average."""
        dp = {"clip": 1e3, "noise_multiplier": 0.01, "delta": 1e-5, "quantile": 0.5}
        strategy = s3(dp=dp, fraction_evaluate=0.0)
        result = train(strategy, grid(), 2)
        model = strategy.federation.model(strategy.run)
        assert [version.number for version in model.history()] == [1, 2, 3]
        # The second round has the clip that follows from the first one: no update was clipped.
        clips = [(entry.mechanism or {})["clip"] for entry in model.privacy().entries]
        assert clips[0] == 1e3
        assert clips[1] == pytest.approx(1e3 * np.exp(-0.2 * 0.5), rel=0.02)
        expected, found = initial(), model_of(result.arrays)
        for server_round in (1, 2):
            sent = [trained(expected, node, server_round)[0] for node in NODES]
            expected = {
                name: np.mean([update[name] for update in sent], axis=0) for name in expected
            }
        # σ of an element is 0.01 · 1000 / 4 a round; of both, 3.4. There are 222 elements.
        noise = np.concatenate([np.ravel(found[n] - expected[n]) for n in expected])
        assert 0.8 * 3.4 < noise.std() < 1.2 * 3.4

    def test_a_rule_by_lengths_gets_changes(self) -> None:
        strategy = s3(rule={"name": "norm_clip", "bound": 1.0}, fraction_evaluate=0.0)
        found = model_of(train(strategy, grid()).arrays)
        changes = {
            node: {
                name: after - before
                for (name, before), after in zip(
                    initial().items(), trained(initial(), node, 1)[0].values(), strict=True
                )
            }
            for node in NODES
        }
        samples = [10 + node % 17 for node in NODES]
        expected = {name: array.astype(float) for name, array in initial().items()}
        for change, counted in zip(changes.values(), samples, strict=True):
            norm = np.sqrt(sum((c.astype(float) ** 2).sum() for c in change.values()))
            for name, tensor in change.items():
                expected[name] = expected[name] + tensor * counted / sum(samples) / norm
        for name, tensor in expected.items():
            assert found[name] == pytest.approx(tensor, abs=1e-6)

    def test_a_spent_privacy_budget_ends_the_run(self) -> None:
        dp = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
        strategy = s3(dp=dp, fraction_evaluate=0.0)
        store = strategy.federation.stack.store
        budget = PrivacyBudget(8.0, 1e-5, 0.3)
        change_ledger(store, strategy.run, lambda ledger: replace(ledger, budget=budget))
        with pytest.raises(RoundFailed, match=r"1 rounds have spent 0\.25"):
            train(strategy, grid(), 2)

    def test_samples_beyond_the_most_count_no_more(self) -> None:
        few = train(s3(max_samples=1, fraction_evaluate=0.0), grid())
        sent = [trained(initial(), node, 1)[0] for node in sorted(NODES)]
        expected = reference.average(sent, [1] * len(sent))
        assert all(a.tobytes() == expected[n].tobytes() for n, a in model_of(few.arrays).items())

    def test_the_same_app_serves_flowers_own_strategy(self) -> None:
        without = DirectGrid({node: client_app(trained, []) for node in NODES})
        assert bits(train(FedAvg(), grid()).arrays) == bits(train(FedAvg(), without).arrays)

    def test_the_pages_lines_are_enough(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()
        client, server, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        names: dict[str, Any] = {}
        exec(client, names)
        app = client_app(trained, [], app=names["app"])
        names |= {
            "grid": DirectGrid(dict.fromkeys(NODES, app)),
            "initial_arrays": record_of(initial()),
        }
        exec(server, names)
        # Two of four nodes are sampled for the evaluation, all for the training.
        assert bits(names["result"].arrays) == bits(train(FedAvg(), grid(), 2).arrays)
        for lines in others:
            exec(lines, names)


class TestBadInput:
    def test_a_client_that_announces_an_upload_but_sends_none_is_named(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def liar(message: Message, context: Any, call_next: Any) -> Message:
            with_arrays = call_next(message, context)
            round_id = strategy.run + "-1"
            return Message(
                RecordDict(
                    {
                        "metrics": with_arrays.content["metrics"],
                        RECORD: ConfigRecord({"round": round_id}),
                    }
                ),
                reply_to=message,
            )

        def blind(message: Message, context: Any, call_next: Any) -> Message:
            message.content["arrays"] = record_of(initial())
            return call_next(message, context)

        strategy = s3(timeout=5, fraction_evaluate=0.0)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = train(strategy, grid(node30=client_app(trained, [liar, blind])))
        assert "Client 00000000000000000030 says it has uploaded" in caplog.text
        metrics = result.train_metrics_clientapp[1]
        assert (metrics["gradshard-contributors"], metrics["gradshard-missing"]) == (3, 1)
        assert bits(result.arrays) == bits(average_of([7, 100, 2**63 + 11]))

    def test_nan_is_rejected_with_its_reason_and_the_others_are_averaged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(model: Model, node: int, server_round: int) -> tuple[Model, float]:
            changed, samples = trained(model, node, server_round)
            changed["second"][3, 2] = np.nan
            return changed, samples

        strategy = s3(fraction_evaluate=0.0)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = train(strategy, grid(node100=client_app(broken, [s3_mod])))
        assert "Rejected" in caplog.text
        assert "second" in caplog.text
        assert result.train_metrics_clientapp[1]["gradshard-rejected"] == 1
        assert result.train_metrics_clientapp[1]["node"] == pytest.approx(mean_node({100}))
        assert bits(result.arrays) == bits(average_of([7, 30, 2**63 + 11]))

    def test_another_layout_than_the_models_is_an_error_of_its_client(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def wider(model: Model, node: int, server_round: int) -> tuple[Model, float]:
            changed, samples = trained(model, node, server_round)
            if server_round == 2:
                changed["second"] = changed["second"].astype(np.float64)
            return changed, samples

        strategy = s3(fraction_evaluate=0.0)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = train(strategy, grid(node7=client_app(wider, [s3_mod])), 2)
        assert "tensor 'second' is F64 [30, 7], not F32 [30, 7]" in caplog.text
        contributors = [
            result.train_metrics_clientapp[number]["gradshard-contributors"] for number in (1, 2)
        ]
        assert contributors == [4, 3]

    def test_under_the_quorum_training_goes_on_from_the_model_before(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails_once(model: Model, node: int, server_round: int) -> tuple[Model, float]:
            if server_round == 1:
                raise RuntimeError("out of power")
            assert model["first"].tobytes() == initial()["first"].tobytes()
            return trained(model, node, server_round)

        strategy = s3(quorum=4, fraction_evaluate=0.0)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = train(strategy, grid(node7=client_app(fails_once, [s3_mod])), 2)
        assert "node 7 (00000000000000000007): out of power" in caplog.text
        assert "3 clients have uploaded, under the quorum of 4" in caplog.text
        assert result.train_metrics_clientapp[1]["gradshard-contributors"] == 0
        assert result.train_metrics_clientapp[2]["gradshard-contributors"] == 4

    def test_a_quorum_lost_to_rejections_fails_the_round_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(model: Model, node: int, server_round: int) -> tuple[Model, float]:
            changed, samples = trained(model, node, server_round)
            changed["first"][0] = np.inf
            return changed, samples

        strategy = s3(quorum=4, fraction_evaluate=0.0)
        with caplog.at_level(logging.WARNING, "flwr"):
            result = train(strategy, grid(node7=client_app(broken, [s3_mod])))
        assert f"round '{strategy.run}-1' failed" in caplog.text
        assert "first" in caplog.text
        assert not result.arrays
        assert result.train_metrics_clientapp[1]["gradshard-rejected"] == 1


def average_of(nodes: Iterable[int]) -> ArrayRecord:
    """What Flower's FedAvg makes of some clients' first round."""
    apps = {node: client_app(trained, []) for node in nodes}
    strategy = FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0)
    return strategy.start(DirectGrid(apps), record_of(initial()), num_rounds=1).arrays


def mean_node(without: set[int]) -> float:
    weights = {node: 10 + node % 17 for node in NODES if node not in without}
    return sum(node * weight for node, weight in weights.items()) / sum(weights.values())
