"""The types of the options with which a client opens a round.

The meaning and default of each option are declared in
:class:`gradshard_core.specs.round_spec.RoundSpec`.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from gradshard_core.specs.round_spec import DEFAULTS, OPTIONS
from gradshard_core.stragglers.layers import Naming


class RoundOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`gradshard.client.federation.Federation.open_round`.

    ``layout`` may also be the path of a .safetensors file with tensors of the same names, types and
    shapes as every update, or such tensors by name.
    """

    min_clients: int | None
    enough_clients: int | None
    timeout: int | None
    topology: str | None
    fan_in: int | None
    order: str | None
    weights: str | None
    max_samples: int | None
    rule: str | Mapping[str, Any] | None
    measure_one_in: int | None
    dp: Mapping[str, Any] | None
    layers: Naming | None
    assignments: Mapping[str, Any] | None
    eager: bool | None
    shards: int | None
    time_budget: float | None
    layout: Mapping[str, Any] | str | Path | None
    allow_nonfinite: bool | None
    codecs: str | Sequence[str] | None
    masked: Mapping[str, Any] | None
    updates_from: str | None
    server_optimizer: str | Mapping[str, Any] | None


def _attributes() -> str:
    """Return the options as the section of a docstring."""
    lines = ["", "", "Attributes", "----------"]
    for name in RoundOptions.__annotations__:
        declared = OPTIONS[name]
        default = declared.default or DEFAULTS[name]
        lines += [name, f"    {declared.help} Values: {declared.kind.values}."]
        lines += [f"    Default: {default}.", ""]
    return "\n".join(lines)


RoundOptions.__doc__ = f"{inspect.cleandoc(RoundOptions.__doc__ or '')}{_attributes()}"
