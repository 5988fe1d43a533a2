"""Flower's Grid without its processes: real ClientApps, called one after the other."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

Model = dict[str, np.ndarray]
Training = Callable[[Model, int, int], tuple[Model, float]]


def record_of(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})


def model_of(record: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in record.items()}


def client_app(train: Training, mods: list[Any], *, app: ClientApp | None = None) -> ClientApp:
    """An ordinary app, whose training is given the model, the node and the round."""
    app = app or ClientApp(mods=mods)

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        model = model_of(message.content["arrays"])
        trained, samples = train(model, context.node_id, message.content["config"]["server-round"])
        metrics = MetricRecord({"num-examples": samples, "node": context.node_id})
        content = RecordDict({"arrays": record_of(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        total = sum(float(a.sum()) for a in model_of(message.content["arrays"]).values())
        metrics = MetricRecord({"num-examples": 1, "sum": total})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class DirectGrid:
    """Calls each node's app, and gives an exception's text as the reply's error, as Flower does."""

    def __init__(self, apps: dict[int, ClientApp]) -> None:
        self.apps = apps
        # Whose messages these are, which Flower's processes know from the beginning.
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.bytes_sent = 0
        self.bytes_replied = 0

    def get_node_ids(self) -> list[int]:
        return list(self.apps)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = []
        for message in sorted(messages, key=lambda m: m.metadata.dst_node_id):
            node = message.metadata.dst_node_id
            self.bytes_sent += _size(message)
            context = Context(1, node, {}, RecordDict(), {})
            try:
                reply = self.apps[node](message, context)
                self.bytes_replied += _size(reply)
            except Exception as error:  # noqa: BLE001 - as Flower does
                reply = Message(Error(1, str(error)), reply_to=message)
            # Of a sent message, which Flower keeps apart from the reply.
            reply.metadata.__dict__["_src_node_id"] = node
            replies.append(reply)
        return replies


def _size(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values())
