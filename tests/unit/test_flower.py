"""What Flower sends and gets, as far as no S3 is needed, with Flower: `make test-flower`."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest

from gradshard.client.federation import Federation
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.robust.rules import parse_robust_rule
from tests.unit.fakes import MemoryStack, MemoryStore


def test_without_flower_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gradshard.flower", raising=False)
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ImportError, match=r"pip install 'gradshard\[flower\]'"):
        importlib.import_module("gradshard.flower")


DP = {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}


class TestWithFlower:
    @pytest.fixture(autouse=True)
    def _needs_flower(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: `make test-flower`")

    def strategy(self, **options: Any) -> Any:
        from gradshard.flower import S3FedAvg

        federation = Federation(bucket="memory")
        federation.stack = MemoryStack(MemoryStore())
        return S3FedAvg(federation, run="r", fraction_evaluate=0.0, **options)

    def send(self, strategy: Any, nodes: tuple[int, ...], model: dict[str, Any]) -> list[Any]:
        from flwr.app import ConfigRecord

        from tests.flower.clients import DirectGrid, record_of

        strategy.min_train_nodes = strategy.min_available_nodes = len(nodes)
        grid = DirectGrid(dict.fromkeys(nodes))
        return list(strategy.configure_train(1, record_of(model), ConfigRecord(), grid))

    def reply(self, message: Any, metrics: dict[str, Any], **models: Any) -> Any:
        """What the mod makes of a training that ends with these metrics and models."""
        from flwr.app import Message, MetricRecord, RecordDict

        from gradshard.flower.client_mod import _uploading
        from gradshard.tickets.round_ticket import Ticket
        from tests.flower.clients import record_of

        records = {name: record_of(model) for name, model in models.items()}
        answer = Message(RecordDict(records | {"metrics": MetricRecord(metrics)}), reply_to=message)
        order = message.content["gradshard"]
        layout = self.layout_of(MODEL)
        return _uploading(answer, Ticket.loads(order["ticket"]), layout, order["weighted-by"])

    def layout_of(self, model: dict[str, Any]) -> Any:
        from gradshard.updates.tensors import pack

        return pack(model)[0]

    @pytest.mark.parametrize(
        "array",
        [
            np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
            np.array(3, np.int64),
            np.zeros((0, 2)),
            np.arange(5, dtype=">f8"),
            np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2],
        ],
        ids=["fortran", "scalar", "empty", "big-endian", "strided"],
    )
    def test_an_array_is_seen_where_it_is(self, array: Any) -> None:
        from flwr.app import Array

        from gradshard.flower.arrays import view

        seen = view(Array(array))
        np.testing.assert_array_equal(seen, array, strict=True)
        assert not seen.flags.owndata

    def test_every_message_has_its_own_ticket_and_no_model(self) -> None:
        from gradshard.tickets.round_ticket import Ticket

        messages = self.send(self.strategy(), (5, 40), MODEL)
        tickets = [Ticket.loads(m.content["gradshard"]["ticket"]) for m in messages]
        assert {t.client for t in tickets} == {"00000000000000000005", "00000000000000000040"}
        assert {t.round_id for t in tickets} == {"r-1"}
        assert all(not m.content["arrays"] for m in messages)

    def test_a_ticket_signs_few_lengths(self) -> None:
        from gradshard.tickets.round_ticket import Ticket

        large = {"w": np.zeros(1 << 22, np.float32)}
        [message, _] = self.send(self.strategy(), (1, 2), large)
        assert len(Ticket.loads(message.content["gradshard"]["ticket"]).upload_lengths) <= 2

    def test_the_model_is_uploaded_once_for_all_clients(self) -> None:
        strategy = self.strategy()
        self.send(strategy, (1, 2, 3), MODEL)
        assert [*strategy.federation.stack.store.objects] == ["rounds/r-1/model.safetensors"]

    def test_two_clients_of_one_name_are_an_error(self) -> None:
        strategy = self.strategy(client_names=lambda _, nodes: dict.fromkeys(nodes, "a"))
        with pytest.raises(SpecError, match="2 nodes the name 'a': each needs its own"):
            self.send(strategy, (1, 2), MODEL)

    def test_a_client_without_a_name_is_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        strategy = self.strategy(client_names=lambda _, nodes: {2: "b"})
        [message] = self.send(strategy, (1, 2), MODEL)
        assert message.metadata.dst_node_id == 2
        assert "gave 1 of 2 nodes no name" in caplog.text

    @pytest.mark.parametrize("samples", [0.5, [3], None])
    def test_a_weight_that_is_no_count_is_an_error(self, samples: Any) -> None:
        [message, _] = self.send(self.strategy(), (1, 2), MODEL)
        metrics = {} if samples is None else {"num-examples": samples}
        with pytest.raises(UpdateError, match=r"'num-examples' is .*, not a whole number above"):
            self.reply(message, metrics, arrays=MODEL)

    def test_a_reply_with_two_models_is_an_error(self) -> None:
        [message, _] = self.send(self.strategy(), (1, 2), MODEL)
        with pytest.raises(UpdateError, match="2 ArrayRecords and 1 MetricRecords"):
            self.reply(message, {"num-examples": 1}, arrays=MODEL, more=MODEL)

    def test_another_layout_is_an_error_before_anything_is_sent(self) -> None:
        [message, _] = self.send(self.strategy(), (1, 2), MODEL)
        other = {"w": np.zeros((3, 2), np.float32)}
        with pytest.raises(UpdateError, match=r"tensor 'w' is F32 \[3, 2\], not F32 \[2, 3\]"):
            self.reply(message, {"num-examples": 1}, arrays=other)

    def test_a_client_without_the_mod_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        from flwr.app import Message, MetricRecord, RecordDict

        strategy = self.strategy()
        messages = self.send(strategy, (1, 2), MODEL)
        replies = []
        for message in messages:
            content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
            replies.append(Message(content, reply_to=message))
            replies[-1].metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        arrays, metrics = strategy.aggregate_train(1, replies)
        assert arrays is None
        assert metrics["gradshard-contributors"] == 0
        assert "No upload of node 2 (00000000000000000002)" in caplog.text
        assert "its ClientApp needs mods=[gradshard.flower.s3_mod]" in caplog.text
        assert not strategy.federation.stack.started

    def test_no_model_before_the_first_round(self) -> None:
        from gradshard_core.errors import RoundStateError

        with pytest.raises(RoundStateError, match="run 'r' has no model yet"):
            self.strategy().fetch()

    @pytest.mark.parametrize("rule", ["fill", {"name": "salf", "p": 0.5}])
    def test_a_rule_for_partial_updates_is_an_error(self, rule: Any) -> None:
        with pytest.raises(SpecError, match="for partial updates, and Flower's clients send whole"):
            self.strategy(rule=rule)

    def test_a_robust_rule_for_partial_updates_is_an_error(self) -> None:
        with pytest.raises(SpecError, match="Flower's clients send whole ones: leave out layer_q"):
            self.strategy(rule={"name": "median", "layer_quorum": 3})

    def test_privacy_with_a_rule_or_without_noise_is_an_error(self) -> None:
        with pytest.raises(SpecError, match="leave out rule"):
            self.strategy(rule="median", dp=DP)
        with pytest.raises(SpecError, match="noise_multiplier is 0, not a number from"):
            self.strategy(dp={**DP, "noise_multiplier": 0})

    @pytest.mark.parametrize(
        ("options", "asks"),
        [
            ({}, False),
            ({"rule": "median"}, False),
            ({"rule": "norm_clip"}, True),
            ({"dp": {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}}, True),
        ],
    )
    def test_clients_are_asked_for_changes_where_lengths_count(
        self, options: dict[str, Any], asks: bool
    ) -> None:
        strategy = self.strategy(**options)
        for message in self.send(strategy, (1, 2), MODEL):
            assert message.content["gradshard"].get("changes", False) is asks
        key = strategy._model[1].key
        assert key.startswith("models/r/" if asks else "rounds/r-1/")

    def test_most_samples_are_an_option_of_the_rounds(self) -> None:
        assert self.strategy(max_samples=9).round_options == {"max_samples": 9}

    def test_a_rule_raises_the_quorum(self) -> None:
        strategy = self.strategy(rule={"name": "krum", "f": 2})
        strategy._names = dict.fromkeys(range(8), "")
        assert strategy._needed() == 7
        assert strategy.round_options == {"rule": {"name": "krum", "f": 2}}

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize(("f", "m"), [(1, 1), (2, 1), (2, 4), (3, 7)])
    def test_krum_and_multi_krum_choose_as_flower_does(self, seed: int, f: int, m: int) -> None:
        from flwr.app import RecordDict
        from flwr.serverapp.strategy.multikrum import select_multikrum

        from tests.flower.clients import record_of

        rng = np.random.default_rng(seed)
        updates = rng.standard_normal((12, 40)).astype("f4")
        updates[:f] += 5
        contents = [RecordDict({"arrays": record_of({"w": update})}) for update in updates]
        chosen = select_multikrum(contents, f, m)
        expected = [i for i, content in enumerate(contents) if any(content is c for c in chosen)]
        wide = updates.astype("f8")
        rule: dict[str, Any] = {"name": "multi_krum", "f": f, "m": m}
        if m == 1:
            rule = {"name": "krum", "f": f}
        decision = parse_robust_rule(rule).decide((wide @ wide.T).tolist(), [1] * 12)
        assert [i for i, weight in enumerate(decision.weights) if weight] == expected

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("f", [1, 2, 3])
    def test_bulyan_is_that_of_flower(self, seed: int, f: int) -> None:
        from flwr.app import Message, MetricRecord, RecordDict
        from flwr.serverapp.strategy import Bulyan

        from tests.flower.clients import record_of
        from tests.unit.robust.test_elementwise_rules import combine

        rng = np.random.default_rng(seed)
        updates = rng.standard_normal((16, 40)).astype("f4")
        updates[:f] += 5
        contents = [
            RecordDict(
                {
                    "arrays": record_of({"w": update}),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            )
            for update in updates
        ]
        messages = [Message(content, dst_node_id=1, message_type="train") for content in contents]
        arrays, _ = Bulyan(num_malicious_nodes=f).aggregate_train(1, messages)
        assert arrays is not None
        wide = updates.astype("f8")
        rule = {"name": "bulyan", "f": f}
        decision = parse_robust_rule(rule).decide((wide @ wide.T).tolist(), [1] * 16)
        kept = [{"w": updates[i]} for i, weight in enumerate(decision.weights) if weight]
        assert len(kept) == 16 - 2 * f
        # numpy does not define the order in which Flower adds.
        flowers = arrays.to_numpy_ndarrays()[0]
        assert np.allclose(combine(rule, kept)["w"], flowers, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("beta", [0.1, 0.2, 0.34, 0.49])
    @pytest.mark.parametrize("clients", [5, 15, 20])
    def test_columns_are_those_of_flower(self, clients: int, beta: float) -> None:
        from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

        from tests.unit.robust.test_elementwise_rules import combine

        if int(beta * clients) == 0:
            pytest.skip("nothing is left out, which gradshard rejects")
        rng = np.random.default_rng(clients)
        updates = [{"w": rng.standard_normal(501).astype("f4")} for _ in range(clients)]
        rule = {"name": "trimmed_mean", "beta": beta}
        # numpy does not define the order in which Flower adds.
        flowers = trim_mean(np.stack([update["w"] for update in updates]), beta)
        assert np.allclose(combine(rule, updates)["w"], flowers, rtol=0, atol=1e-6)


MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
