"""Rounds of compressed updates beside the same round of F32: processor time, memory and bytes."""

from typing import Any, Final

from benchmarks import runs
from benchmarks.runs import FUNCTION
from benchmarks.servers import Server
from benchmarks.suite import Progress
from benchmarks.workload import RESNET_18, Case, Workloads
from gradshard_core.formats.codecs.registry import CODECS

PLAIN: Final = "F32"
ELEMENTS: Final = 32 * 1024**2
"""Of an update: 128 MiB in F32."""


def measure(server: Server, times: int, *, quick: bool, say: Progress) -> dict[str, Any]:
    """Run a function on the same round with each codec, one after the other in each run."""
    elements = RESNET_18 if quick else ELEMENTS
    workloads, prepared = Workloads(server), {}
    for codec in ("", *CODECS):
        say(f"compressed {codec or PLAIN}: making updates")
        prepared[codec or PLAIN] = workloads.prepare(Case(20, elements, 1, whole=True, codec=codec))
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in prepared}
    for number in range(times):
        for name, case in prepared.items():
            say(f"compressed: run {number + 1} of {times}, {name}")
            measured[name].append(runs.run(FUNCTION, case, server))
    return {
        "case": prepared[PLAIN].case.round_id,
        "decoded_gb": prepared[PLAIN].client_bytes / 1e9,
        "rows": {
            name: {
                "stored": _stored(name),
                "projected_mb": prepared[name].projected_mb,
                "cpu_to_plain": runs.summary(
                    [
                        run["cpu_seconds"] / plain["cpu_seconds"]
                        for run, plain in zip(found, measured[PLAIN], strict=True)
                    ]
                ),
                **runs.summarise(found),
            }
            for name, found in measured.items()
        },
    }


def _stored(name: str) -> float:
    """Return the bytes of an update as it is stored, divided by its bytes in F32."""
    return CODECS[name].stored_bytes(ELEMENTS) / (4 * ELEMENTS) if name in CODECS else 1.0
