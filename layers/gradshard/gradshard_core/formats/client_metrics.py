"""Metrics of clients: numbers by name, which an update carries in its metadata."""

import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gradshard_core.errors import UpdateError

METRICS_KEY: Final = "metrics"
"""The key of an update's metadata that holds its metrics, as a JSON object."""

MAX_METRICS: Final = 32
"""Metrics of a client in a round."""

MAX_KEPT: Final = 64
"""Metrics in the record of a round, those that most clients have sent: each may choose its own
names."""

FIRST_READ_BYTES: Final = 16 * 1024
"""The header of most updates is shorter than this, so that one request reads its metrics."""

EVALUATION: Final[Mapping[str, float]] = {"evaluation": 0.0}
"""The tensors of an update in an evaluation, whose content is its metrics: clients may measure
different ones, and the updates of a round have one layout."""

EVALUATION_LAYOUT: Final[Mapping[str, Any]] = {"evaluation": {"dtype": "F64", "shape": []}}
"""Their layout, as a round's terms state it."""

Found = dict[str, float] | str | None
"""Of an update: its metrics, the reason why they do not count, or None if nobody has looked."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,63}")
_MAX_TEXT: Final = 8192
"""Characters: more than as many metrics with the longest names take."""


def is_metric_name(name: Any) -> bool:
    """Return whether a metric may have this name.

    MLflow, to which metrics are exported, treats names as paths and takes none that stands for
    another one (https://github.com/mlflow/mlflow/blob/master/mlflow/utils/validation.py).
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return False
    return posixpath.normpath(name) == name


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers.

    Raises
    ------
    UpdateError
        They are too many, or one has no valid name or is not a finite number.
    """
    if len(metrics) > MAX_METRICS:
        raise UpdateError(f"{len(metrics)} metrics, over {MAX_METRICS}: send fewer")
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        if not is_metric_name(name):
            raise UpdateError(
                f"metric {str(name)[:80]!r} is not 1 to 64 letters, digits, spaces and ._/- that "
                "begin with a letter or digit, with no empty part or dots alone between slashes"
            )
        try:
            number = math.nan if isinstance(value, bool | str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UpdateError(f"metric {name!r} is {str(value)[:80]!r}, not a finite number")
        checked[name] = number
    return checked


def encode_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics as an update's metadata holds them.

    Raises
    ------
    UpdateError
        As :func:`check_metrics`.
    """
    checked = check_metrics(metrics)
    return {METRICS_KEY: json.dumps(checked)} if checked else {}


def parse_metrics(metadata: Mapping[str, str]) -> dict[str, float]:
    """Read the metrics in an update's metadata; none if there are none.

    Raises
    ------
    UpdateError
        They are not what :func:`encode_metrics` writes.
    """
    text = metadata.get(METRICS_KEY)
    if text is None:
        return {}
    if len(text) > _MAX_TEXT:
        raise UpdateError(f"its metrics are {len(text)} characters, over {_MAX_TEXT}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise UpdateError("its metrics are no JSON") from None
    if not isinstance(found, dict):
        raise UpdateError("its metrics are no JSON object")
    return check_metrics(found)


def find(metadata: Mapping[str, str]) -> Found:
    """Read the metrics in an update's metadata, or say why they do not count."""
    try:
        return parse_metrics(metadata)
    except UpdateError as error:
        return str(error)


def of_clients_to_json(sent: Mapping[str, Found]) -> dict[str, Any]:
    """Return what was found of clients as JSON; of their metrics, those that most have sent.

    All readers together would need memory for every name that any client has thought of.
    """
    of_some = [found for found in sent.values() if isinstance(found, dict)]
    kept = {*most_frequent(of_some, None)[:MAX_KEPT]}

    def filtered(found: Found) -> Found:
        if not isinstance(found, dict):
            return found
        return {name: value for name, value in found.items() if name in kept}

    listed = [[client, filtered(found)] for client, found in sent.items() if found != {}]
    return {"clients": listed}


def most_frequent(rounds: Iterable[Mapping[str, float]], first: str | None) -> list[str]:
    """Return the names of the metrics of rounds: one of them, then those that most rounds have.

    Parameters
    ----------
    rounds
        The metrics of each round.
    first
        The name that comes first, if any round has it.
    """
    counts = Counter(name for metrics in rounds for name in metrics)
    return sorted(counts, key=lambda name: (name != first, -counts[name], name))
