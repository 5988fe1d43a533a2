"""The statements of a completed round's manifest about the making of its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.records.model_registry import Version


class NamedContributor(NamedTuple):
    """A contributor as the manifest names it."""

    client: str
    source: ObjectVersion
    samples: int
    weight: float | None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "NamedContributor":
        """Read it from a manifest."""
        return cls(str(fields["client"]), _source(fields), fields["samples"], fields["weight"])


@dataclass(frozen=True)
class StatedRound:
    """The statements of a completed round's manifest.

    Parameters
    ----------
    result
        The published average.
    contributors
        Whose updates it is the average of.
    computation
        Topology, order, weights, rule, and sizes of groups, as the manifest has them.
    layers
        The weights of each layer of partial updates, by client.
    model
        The version of the model that the round made.
    masks, samples
        In a masked round, the keeper's answer and the sum of the counts.
    """

    result: ObjectVersion
    contributors: tuple[NamedContributor, ...]
    computation: Mapping[str, Any]
    layers: tuple[tuple[float | None, Mapping[str, float]], ...]
    model: Version | None
    masks: ObjectVersion | None = None
    samples: int | None = None

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> "StatedRound":
        """Read it from a manifest.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is not one of a completed round.
        """
        return cls(
            _source(manifest["update"]),
            tuple(map(NamedContributor.from_json, manifest["contributors"])),
            {name: manifest[name] for name in ("topology", "order", "weights", "rule", "groups")},
            tuple((layer["p"], dict(layer["weights"])) for layer in manifest.get("layers", ())),
            manifest["model"] and Version.from_json(manifest["model"]),
            _source(manifest["masks"]) if manifest.get("masks") else None,
            manifest.get("samples"),
        )


def _source(fields: Mapping[str, Any]) -> ObjectVersion:
    """Read an object version that a manifest names."""
    key, version, etag = (str(fields[name]) for name in ("key", "version", "etag"))
    return ObjectVersion(key, version, etag, int(fields["nbytes"]))
