"""The ClientApp: an ordinary one, but for its mod."""

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import task
from gradshard.flower import s3_mod

# The one line that is not as in any other ClientApp: without the mod it is Flower's alone.
app = ClientApp(mods=[s3_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on this client's samples."""
    partition = int(context.node_config["partition-id"])
    model = task.model_of(message.content["arrays"])
    trained, samples = task.train(model, partition, int(message.content["config"]["server-round"]))
    content = {
        "arrays": task.record_of(trained),
        "metrics": MetricRecord({"num-examples": samples, "partition": partition}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Tell how well the model does on this client's samples."""
    partition = int(context.node_config["partition-id"])
    model = task.model_of(message.content["arrays"])
    accuracy, samples = task.evaluate(model, partition)
    metrics = MetricRecord({"num-examples": samples, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query()
def name(message: Message, context: Context) -> Message:
    """Tell the server this client's name, by which the order of additions goes."""
    record = ConfigRecord({"name": f"client-{int(context.node_config['partition-id']):02d}"})
    return Message(RecordDict({"client": record}), reply_to=message)
