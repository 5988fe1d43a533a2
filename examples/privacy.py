"""Train with private rounds, and compare accuracy with ε for several noise multipliers.

On scikit-learn's digits, shared out over clients. Each round clips updates, adds them and adds
noise as gradshard's functions do. ε is that of all rounds up to one, for each client, from Google's
dp-accounting (`pip install 'gradshard[privacy]'`). Writes privacy.svg and privacy.json.
"""

import hashlib
import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

import attacks
from gradshard.client.accounting import epsilon_of
from gradshard_core.aggregation.gram import Measuring, chunk_ranges
from gradshard_core.aggregation.kernel import Reduction, Source, Zone, aggregate
from gradshard_core.aggregation.noise import NoiseSource
from gradshard_core.aggregation.privacy import PrivacyMechanism, PrivateSum
from gradshard_core.formats.layout import Layout
from stragglers import network, program
from stragglers.curves import Curve, Floats, Panel

DELTA: Final = 1e-3
"""Under one divided by the number of clients."""

MULTIPLIERS: Final = (None, 0.01, 0.5, 1.0, 2.0, 4.0)
"""None for rounds without privacy. The next has hardly any noise: it shows what clipping costs."""


def combine(updates: network.Array, mechanism: PrivacyMechanism, key: bytes) -> network.Array:
    """Combine updates, one row each, with the kernel that gradshard's functions run."""
    layout = Layout.pack([("update", "F32", (updates.shape[1],))])
    chunks = list(chunk_ranges(layout.spans, layout.nbytes, 0, layout.nbytes))

    def run(
        reduction: Reduction, weights: Sequence[float], ranges: Sequence[Any], *more: Source
    ) -> bytes:
        sources = [attacks.InMemory(row.tobytes()) for row in updates.astype("<f4")]
        zones = [Zone(start, end, weights) for start, end in ranges]
        out = bytearray()
        aggregate([*sources, *more], zones, reduction, layout.spans, out.extend)
        return bytes(out)

    measuring = Measuring(len(updates), pairs=False)
    run(measuring, [1.0] * len(updates), chunks)
    ones = [1] * len(updates)
    gram = np.diag(measuring.products.rounded_diagonal()).tolist()
    factors = mechanism.decide(gram, ones).weights
    grid = mechanism.grid(updates.shape[1])
    reduction = PrivateSum(grid.step, len(updates))
    noise = NoiseSource(key, grid.terms, 0)
    return np.frombuffer(run(reduction, factors, [(0, layout.nbytes)], noise), "<f4")


def learn(multiplier: float | None, given: Any, seed: int) -> Floats:
    """Return the accuracy after each round."""
    clients, test = attacks.load("digits", given.clients, seed)
    model = network.initialise((test.images.shape[1], attacks.HIDDEN, 10), seed)
    accuracies = np.empty(given.rounds)
    for number in range(given.rounds):
        before = attacks.flat(model)
        updates = np.stack(
            [
                attacks.flat(network.train(model, *c, attacks.LOCAL, seed * 1000 + number)) - before
                for c in clients
            ]
        )
        if multiplier is None:
            change = attacks.combine(updates, [1] * len(updates), None)
        else:
            # A real round's key is from the operating system. These numbers can be made again.
            key = hashlib.sha256(f"{seed} {multiplier} {number}".encode()).digest()
            change = combine(updates, PrivacyMechanism(given.clip, multiplier, DELTA), key)
        model = attacks.shaped(before + change, model)
        accuracies[number] = network.accuracy(model, *test)
    return accuracies


def run(given: Any) -> Panel:
    """Train with every noise multiplier and every seed."""
    curves = []
    rounds = np.arange(1.0, given.rounds + 1)
    with program.ticker(len(MULTIPLIERS) * given.seeds) as ticker:
        for multiplier in MULTIPLIERS:
            runs = []
            for seed in range(given.seeds):
                runs.append(learn(multiplier, given, seed))
                ticker.done(f"z = {multiplier}")
            label, epsilon = "not private", None
            if multiplier is not None:
                cost = PrivacyMechanism(given.clip, multiplier, DELTA).cost
                epsilon = epsilon_of(given.rounds * cost, DELTA)
                label = f"z {multiplier:g}: ε {epsilon:.3g}"
            last = [round(float(accuracies[-1]), 5) for accuracies in runs]
            curves.append(Curve.of(label, rounds, runs, {"epsilon": epsilon, "last": last}))
    return Panel(f"{given.clients} clients, clip {given.clip:g}", "round", curves)


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=60, rounds=15, seeds=5)
    options.add_argument("--clip", type=float, default=1.0, help="length to which updates are cut")
    given = options.parse_args()
    if not (math.isfinite(given.clip) and given.clip > 0):
        options.error(f"--clip is {given.clip}, not a number above 0")
    panel = run(given)
    program.table(
        f"Accuracy in percent after {given.rounds} rounds of {given.clients} clients",
        ("noise", "accuracy"),
        [(c.label, f"{100 * c.mean[-1]:.1f} ± {100 * c.spread[-1]:.1f}") for c in panel.curves],
    )
    settings = {**vars(given), "output": None, "delta": DELTA, "alpha": attacks.ALPHA}
    title = f"Accuracy by round, and ε at δ {DELTA:g} after all"
    program.write(given.output, "privacy", title, settings, [panel])
    return 0


if __name__ == "__main__":
    sys.exit(main())
