"""Measurements of others: the published cost of GradsSharding, λ-FL and LIFL on AWS Lambda.

Dollars and wall seconds are the tables of Barrak, "Shard the Gradient, Scale the Model"
(arXiv 2604.22072, 2026). The seconds of single functions are not in the paper: they are means over
the eight warm runs in its replication package (AmineBarrak/Serverless-aggregation-grads-sharding
at e8e54fc, results/rq3_cross_architecture/rq3_*.json: ``shard_durations_s``,
``leaf_durations_s``, ``l1_durations_s`` and so on), read 2026-11-20.

20 clients, us-east-1, x86-64, Python 3.12; updates of float32.
"""

from dataclasses import dataclass
from typing import Final

from gradshard_core.units import MIB

CLIENTS: Final = 20
ARCHITECTURE: Final = "x86_64"


@dataclass(frozen=True)
class Model:
    """A model whose updates were averaged.

    Parameters
    ----------
    name
        The name in the paper.
    parameters
        The number of parameters, four bytes each.
    shards
        M, as GradsSharding ran it.
    """

    name: str
    parameters: int
    shards: int

    @property
    def nbytes(self) -> int:
        """Size of an update's tensors."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Level:
    """Functions that run side by side.

    Parameters
    ----------
    functions
        The number of functions.
    mean_seconds
        The mean seconds of a function by its own clock, which the paper bills.
    """

    functions: int
    mean_seconds: float


@dataclass(frozen=True)
class Measurement:
    """One cell of the paper's comparison.

    Parameters
    ----------
    model
        The model that was averaged.
    system
        ``gradssharding``, ``lambda_fl`` or ``lifl``.
    memory_mb
        The memory of each function, in MB.
    wall_seconds
        The seconds of the aggregation, from the first invocation to the last answer.
    aggregators_dollars
        Per thousand rounds: Lambda's GB-seconds and the functions' S3 requests.
    full_dollars
        The same with the clients' S3 requests. Rounded to cents in the paper.
    levels
        The levels, which ran one after another.
    """

    model: Model
    system: str
    memory_mb: int
    wall_seconds: float
    aggregators_dollars: float
    full_dollars: float
    levels: tuple[Level, ...]


RESNET18: Final = Model("ResNet-18", 11_181_642, 4)
VGG16: Final = Model("VGG-16", 134_301_514, 4)
GPT2_LARGE: Final = Model("GPT-2 Large", 774_030_080, 4)
SYNTHETIC_5GB: Final = Model("synthetic 5 GB", 1_342_177_280, 8)
MODELS: Final = (RESNET18, VGG16, GPT2_LARGE, SYNTHETIC_5GB)

MEASUREMENTS: Final = (
    Measurement(RESNET18, "gradssharding", 472, 7.90, 0.2625, 0.70, (Level(4, 6.852),)),
    Measurement(
        RESNET18, "lambda_fl", 536, 10.40, 0.2692, 0.38, (Level(4, 5.663), Level(1, 4.237))
    ),
    Measurement(
        RESNET18,
        "lifl",
        536,
        12.28,
        0.4149,
        0.52,
        (Level(7, 3.805), Level(3, 3.190), Level(1, 3.666)),
    ),
    Measurement(VGG16, "gradssharding", 835, 67.25, 3.383, 3.82, (Level(4, 61.275),)),
    Measurement(
        VGG16, "lambda_fl", 1987, 117.35, 10.167, 10.28, (Level(4, 68.375), Level(1, 39.814))
    ),
    Measurement(
        VGG16,
        "lifl",
        1987,
        126.59,
        12.919,
        13.03,
        (Level(7, 39.559), Level(3, 28.596), Level(1, 34.699)),
    ),
    Measurement(GPT2_LARGE, "gradssharding", 2665, 362.5, 58.85, 59.29, (Level(4, 338.907),)),
    Measurement(SYNTHETIC_5GB, "gradssharding", 2370, 299.4, 84.80, 85.66, (Level(8, 274.458),)),
)

SHARD_SWEEP_SECONDS: Final = {1: 188.8, 2: 97.8, 4: 59.8, 8: 26.9, 16: 22.3}
"""VGG-16 with GradsSharding at 3,008 MB: wall seconds by M."""

SLOWEST_READ_BYTES_PER_SECOND: Final = 44 * MIB
FASTEST_READ_BYTES_PER_SECOND: Final = 57 * MIB
"""The rate of one function that reads S3, one object after another ("MB/s" in the package are
MiB/s)."""

ACCOUNT_MEMORY_MB: Final = 3008
"""Cap of the account the paper used; Lambda's own is 10,240."""

TIMEOUT_SECONDS: Final = 900.0


def measured(model: Model, system: str) -> Measurement | None:
    """Return what was measured of a system with a model, if it was."""
    return next((m for m in MEASUREMENTS if (m.model, m.system) == (model, system)), None)
