"""The ServerApp: with Flower's FedAvg, or with gradshard's in its place."""

import json
import os
import resource
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import task
from gradshard import Federation
from gradshard.flower import S3FedAvg

S3: Final = "s3"
S3_REFERENCES: Final = "s3-references"
FLOWER: Final = "flower"

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Train for some rounds; write the model to a file, and what it took to another."""
    began = time.monotonic()
    strategy = make_strategy(os.environ["EXAMPLE_STRATEGY"])
    result = strategy.start(
        grid=grid,
        initial_arrays=task.record_of(task.initial()),
        num_rounds=int(os.environ["EXAMPLE_ROUNDS"]),
        evaluate_fn=None if task.MODEL_MB or not keeps_arrays() else evaluate,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The whole model at once only now, and only for the comparison: fetch(path) spares it.
    arrays = result.arrays if keeps_arrays() else strategy.fetch()
    model: dict[str, Any] = task.model_of(arrays)
    output = Path(os.environ["EXAMPLE_OUTPUT"])
    with output.open("wb") as file:
        np.savez(file, **model)
    figures = {
        "peak_bytes": peak,
        "seconds": time.monotonic() - began,
        "contributors": {
            number: metrics.get("gradshard-contributors", task.CLIENTS)
            for number, metrics in result.train_metrics_clientapp.items()
        },
    }
    # Under its name only when it is whole: others wait for it.
    unfinished = output.with_suffix(".part")
    unfinished.write_text(json.dumps(figures))
    unfinished.replace(output.with_suffix(".json"))


def keeps_arrays() -> bool:
    """Return whether the server has the model after each round."""
    return os.environ["EXAMPLE_STRATEGY"] != S3_REFERENCES


def make_strategy(name: str) -> FedAvg:
    """Return Flower's strategy, or gradshard's with the same options."""
    options: dict[str, Any] = {
        "fraction_evaluate": 0.0 if task.MODEL_MB else 1.0,
        "min_train_nodes": task.CLIENTS,
        "min_available_nodes": task.CLIENTS,
    }
    if name == FLOWER:
        return FedAvgInOrder(**options)
    return S3FedAvg(
        Federation(), keep_arrays=keeps_arrays(), client_names=ask_names, quorum=2, **options
    )


def ask_names(grid: Grid, nodes: Sequence[int]) -> dict[int, str]:
    """Ask clients for their names: node ids are random, and additions would go another way."""
    messages = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in nodes]
    replies = grid.send_and_receive(messages, timeout=300)
    return {
        reply.metadata.src_node_id: reply.content["client"]["name"]
        for reply in replies
        if reply.has_content()
    }


class FedAvgInOrder(FedAvg):
    """Flower's FedAvg, given the replies by client and not as they arrive.

    Floating-point sums depend on the order: Flower's own differ from run to run in the last bits.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies in the clients' order."""
        ordered = sorted(replies, key=lambda reply: reply.content["metrics"]["partition"])
        arrays, metrics = super().aggregate_train(server_round, ordered)
        return arrays, metrics


def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the model on images that nobody trains on."""
    return MetricRecord({"accuracy": task.accuracy(task.model_of(arrays))})
