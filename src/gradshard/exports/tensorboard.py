"""A training's metrics as an event file of TensorBoard, ``gradshard[tensorboard]``."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from gradshard.exports.metric_values import values_of
from gradshard.utils.atomic_file import atomic_file

FILE: Final = "events.out.tfevents.0.gradshard"
"""TensorBoard reads files with ``tfevents`` in their names, in the order of these."""

_VERSION: Final = "brain.Event:2"
_ROOM_BYTES: Final = 1024
"""Of an event on the disk, at most: its name has at most 75 characters."""


def export(status: Mapping[str, Any], folder: Path) -> Path:
    """Write the event file of a training, over the one of an earlier export.

    Parameters
    ----------
    status
        The result of :meth:`gradshard.client.training.Training.status`.
    folder
        TensorBoard's log directory; the training gets a folder of its name in it.

    Returns
    -------
    Path
        The file. The same records give the same bytes.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    run: Path = folder / status["training"]
    run.mkdir(parents=True, exist_ok=True)
    began = datetime.fromisoformat(status["started_at"]).timestamp()
    events = [Event(wall_time=began, file_version=_VERSION)]
    for value in values_of(status["rounds"]):
        summary = Summary(value=[Summary.Value(tag=value.name, simple_value=value.value)])
        events.append(Event(wall_time=value.at.timestamp(), step=value.step, summary=summary))
    path = run / FILE
    with atomic_file(path, _ROOM_BYTES * len(events)) as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
    return path
