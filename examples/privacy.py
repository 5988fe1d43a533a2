"""Train with private rounds, and compare accuracy with ε for several noise multipliers and clips.

On scikit-learn's digits, shared out over clients. Each round clips updates, adds them and adds
noise as gradshard's functions do, once without masks and once with: masked by the clients, and with
the noise in the keeper's answer. ε is that of all rounds up to one, for each client, from Google's
dp-accounting (`pip install 'gradshard[privacy]'`). Writes privacy.svg and privacy.json.
"""

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

import attacks
from gradshard.client.privacy_accounting import epsilon_of
from gradshard_core.aggregation.kernel import Reduction, Source, WeightedRange, aggregate
from gradshard_core.aggregation.masked_sum import ADDED, SUBTRACTED, Decoding, RingSum, ring_spans
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.masking.key_stream import KeyStream
from gradshard_core.privacy.masked_noise import RingNoise, noise_key
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.privacy.noisy_fixed_point import NoisyFixedPoint
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.privacy.private_sum import PrivateSum
from gradshard_core.robust.inner_products import Measuring, chunk_ranges
from gradshard_core.specs.masking_options import parse_masking
from stragglers import network, program
from stragglers.curves import Curve, Floats, Panel

DELTA: Final = 1e-3
"""Under one divided by the number of clients."""

BOUND: Final = 2.0
"""Of an element of a masked update without noise."""

MULTIPLIERS: Final = (0.01, 0.5, 1.0, 2.0, 4.0)
"""The first has hardly any noise: it shows what clipping costs."""

ADAPTIVE_MULTIPLIER: Final = 1.0
CLIPS: Final = (0.1, 1.0, 10.0)
"""Where the clips begin that are compared with adaptive ones. Updates are near 1 long at first."""


def combine(
    updates: network.Array, mechanism: PrivacyMechanism, key: bytes
) -> tuple[network.Array, PrivacyMechanism, float]:
    """Combine updates, one row each, with the kernel that gradshard's functions run.

    Returns
    -------
    array
        The private average.
    PrivacyMechanism
        That of the next round, whose clip may have adapted.
    float
        The share of the updates that were clipped.
    """
    layout = Layout.pack([("update", "F32", (updates.shape[1],))])
    chunks = list(chunk_ranges(layout.spans, layout.nbytes, 0, layout.nbytes))

    def run(
        reduction: Reduction, weights: Sequence[float], ranges: Sequence[Any], *more: Source
    ) -> bytes:
        sources = [attacks.InMemory(row.tobytes()) for row in updates.astype("<f4")]
        weighted_ranges = [WeightedRange(start, end, weights) for start, end in ranges]
        out = bytearray()
        aggregate([*sources, *more], weighted_ranges, reduction, layout.spans, out.extend)
        return bytes(out)

    measuring = Measuring(len(updates), pairs=False)
    run(measuring, [1.0] * len(updates), chunks)
    ones = [1] * len(updates)
    gram = np.diag(measuring.products.rounded_diagonal()).tolist()
    decision = mechanism.decide(gram, ones)
    factors = decision.weights
    grid = mechanism.grid(updates.shape[1])
    reduction = PrivateSum(grid.step, len(updates))
    noise = NoiseSource(key, grid.terms, 0)
    average = np.frombuffer(run(reduction, factors, [(0, layout.nbytes)], noise), "<f4")
    count = mechanism.noisy_count(decision.whole, key)
    if count is not None:
        mechanism = replace(mechanism, clip=mechanism.next_clip(count, len(updates)))
    return average, mechanism, float(np.mean(np.array(factors) < 1))


def combine_masked(
    updates: network.Array, mechanism: PrivacyMechanism | None, seeds: Sequence[bytes]
) -> network.Array:
    """Combine updates, one row each, as clients, keeper and aggregator of a masked round do."""
    clients, elements = updates.shape
    layout = Layout.pack([("update", "F32", (elements,))])
    spans = ring_spans(layout.spans, 32)
    encoded = {"bound": BOUND, "max_samples": 1}
    given = encoded if mechanism is None else {"dp": mechanism.to_json()}
    fixed = parse_masking({"keeper": "0" * 64, **given}).fixed(clients, elements)

    def add(sources: Sequence[Source], last: float, reduction: Reduction) -> bytes:
        weighted_ranges = [WeightedRange(0, layout.nbytes, [ADDED] * (len(sources) - 1) + [last])]
        out = bytearray()
        aggregate(sources, weighted_ranges, reduction, spans, out.extend)
        return bytes(out)

    masked, masks = [], list[Source]()
    for row, seed in zip(updates.astype("<f4"), seeds, strict=True):
        sent, mask = np.empty((2, elements), fixed.dtype)
        norm = math.sqrt(float(np.sum(np.square(row, dtype=np.float64))))
        fixed.encode(row, fixed.scale(1, norm), sent)
        KeyStream(seed, 0, layout.nbytes).read_into(memoryview(mask).cast("B"))
        masked.append(attacks.InMemory((sent + mask).tobytes()))
        masks.append(KeyStream(seed, 0, layout.nbytes))
    if isinstance(fixed, NoisyFixedPoint):
        terms = fixed.grid.terms
        masks.append(RingNoise(noise_key(seeds), terms, 0, elements + 1, fixed.ring_bits))
    answer = attacks.InMemory(add(masks, ADDED, RingSum()))
    average = add([*masked, answer], SUBTRACTED, RingSum(Decoding(fixed, clients)))
    return np.frombuffer(average, "<f4")


def learn(
    mechanism: PrivacyMechanism | None, given: Any, seed: int, *, masked: bool
) -> tuple[Floats, float, float]:
    """Return the accuracy after each round, the clip after all, and who was clipped in the last."""
    clients, test = attacks.load("digits", given.clients, seed)
    model = network.initialise((test.images.shape[1], attacks.HIDDEN, 10), seed)
    accuracies, clipped = np.empty(given.rounds), 0.0
    for number in range(given.rounds):
        before = attacks.flat(model)
        updates = np.stack(
            [
                attacks.flat(network.train(model, *c, attacks.LOCAL, seed * 1000 + number)) - before
                for c in clients
            ]
        )
        multiplier = None if mechanism is None else mechanism.noise_multiplier
        # A real round's keys and seeds are secret. These numbers can be made again.
        secret = f"{seed} {multiplier} {number}"
        if masked:
            seeds = [_secret(f"{secret} {client}") for client in range(len(updates))]
            change = combine_masked(updates, mechanism, seeds)
        elif mechanism is None:
            change = attacks.combine(updates, [1] * len(updates), None)
        else:
            change, mechanism, clipped = combine(updates, mechanism, _secret(secret))
        model = attacks.shaped(before + change, model)
        accuracies[number] = network.accuracy(model, *test)
    return accuracies, 0.0 if mechanism is None else mechanism.clip, clipped


def _secret(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def run(
    title: str,
    mechanisms: Mapping[str, PrivacyMechanism | None],
    given: Any,
    ticker: program.Ticker,
    *,
    masked: bool = False,
) -> Panel:
    """Train with every mechanism, by its label, and every seed."""
    curves = []
    rounds = np.arange(1.0, given.rounds + 1)
    for label, mechanism in mechanisms.items():
        runs, clips, shares = [], [], []
        for seed in range(given.seeds):
            accuracies, clip, clipped = learn(mechanism, given, seed, masked=masked)
            runs.append(accuracies)
            clips.append(round(clip, 5))
            shares.append(round(clipped, 5))
            ticker.done(label)
        figures: dict[str, Any] = {"epsilon": None}
        if mechanism is not None:
            figures["epsilon"] = epsilon_of(given.rounds * mechanism.cost, DELTA)
            if not masked:
                figures |= {"clips": clips, "clipped": shares}
        figures["last"] = [round(float(accuracies[-1]), 5) for accuracies in runs]
        curves.append(Curve.of(label, rounds, runs, figures))
    return Panel(title, "round", curves)


def panels_of(given: Any) -> list[Panel]:
    """Compare noise multipliers, without masks and with, and fixed clips with adaptive ones."""
    by_noise: dict[str, PrivacyMechanism | None] = {"not private": None}
    for multiplier in MULTIPLIERS:
        mechanism = PrivacyMechanism(given.clip, multiplier, DELTA)
        epsilon = epsilon_of(given.rounds * mechanism.cost, DELTA)
        by_noise[f"z {multiplier:g}: ε {epsilon:.3g}"] = mechanism
    adaptation = {"quantile": 0.5, "clip_rate": given.clip_rate}
    by_clip: dict[str, PrivacyMechanism | None] = {}
    for clip in CLIPS:
        stated = {"clip": clip, "noise_multiplier": ADAPTIVE_MULTIPLIER, "delta": DELTA}
        by_clip[f"clip {clip:g}"] = parse_privacy(stated)
        by_clip[f"adapts from {clip:g}"] = parse_privacy({**stated, **adaptation})
    title = f"{given.clients} clients, clip {given.clip:g}"
    with program.ticker((2 * len(by_noise) + len(by_clip)) * given.seeds) as ticker:
        return [
            run(title, by_noise, given, ticker),
            run(f"{title}, masked", by_noise, given, ticker, masked=True),
            run(f"noise multiplier {ADAPTIVE_MULTIPLIER:g}", by_clip, given, ticker),
        ]


def row(curve: Curve, masked: str) -> tuple[str, ...]:
    """Return what the table says of a curve."""
    accuracy, figures = program.percent(curve.figures["last"]), curve.figures
    if "clips" not in figures:
        return curve.label, accuracy, masked, "", ""
    clip = f"{np.mean(figures['clips']):.2f}"
    return curve.label, accuracy, masked, clip, f"{100 * np.mean(figures['clipped']):.0f}"


def main() -> int:
    """Run the program and return the process's exit code."""
    options = program.parser(__doc__, clients=60, rounds=15, seeds=5)
    options.add_argument("--clip", type=float, default=1.0, help="length to which updates are cut")
    options.add_argument("--clip-rate", type=float, default=0.2, help="η, by which a clip adapts")
    given = options.parse_args()
    if not (math.isfinite(given.clip) and given.clip > 0):
        options.error(f"--clip is {given.clip}, not a number above 0")
    plain, masked, clips = panels = panels_of(given)
    beside = [program.percent(curve.figures["last"]) for curve in masked.curves]
    rows = [row(curve, text) for curve, text in zip(plain.curves, beside, strict=True)]
    program.table(
        f"Accuracy in percent after {given.rounds} rounds of {given.clients} clients",
        ("mechanism", "accuracy", "masked", "clip", "clipped"),
        [*rows, *(row(curve, "") for curve in clips.curves)],
    )
    settings = {**vars(given), "output": None, "delta": DELTA, "alpha": attacks.ALPHA}
    title = f"Accuracy by round, and ε at δ {DELTA:g} after all"
    program.write(given.output, "privacy", title, settings, [plain, clips], panels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
