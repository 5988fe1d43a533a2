"""A model's privacy ledger: what its rounds have revealed so far, and how much they may.

A round is entered before it opens, with the cost 1/z² of its noise multiplier z, and 1/σ_b² more
if its clip adapts (:mod:`gradshard_core.privacy.privacy_mechanism`). All rounds of a tree of
noise cost 1/z² together for each of its levels (:mod:`gradshard_core.privacy.noise_tree`): the
first round that makes it deeper pays. Costs add up: all rounds together reveal as much as one with
the noise multiplier 1/√(Σ 1/z²) (:mod:`gradshard_core.privacy.privacy_mechanism`). From that
sum, an accountant computes ε at any δ (``gradshard.client.privacy_accounting``); functions only
compare it with the *allowance* of the model's budget, which was computed when the budget was set.

**Two figures.** That sum holds against everybody, who may know all clients of all rounds. Whoever
gets nothing but versions of the model does not know who was drawn in secret
(:mod:`gradshard_core.privacy.secret_client_sampling`): against them,
:attr:`PrivacyLedger.parts` says what an accountant needs. Budgets hold the first one.

An entry stays, whatever becomes of the round's version of the model. Only the entry of a round that
failed before noise was drawn costs nothing; in a tree, its repetition does. If the opening of a
round dies for good after its entry, the entry keeps its cost: nothing tells the round from one that
was opened and whose objects were deleted.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self

from gradshard_core.errors import PrivacyBudgetError
from gradshard_core.formats.object_keys import ModelKeys
from gradshard_core.privacy.noise_tree import depth
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store


@dataclass(frozen=True)
class Entry:
    """A round in a ledger.

    Parameters
    ----------
    round_id
        The round.
    mechanism
        Clip, noise multiplier, δ and more, as JSON; None for a round without noise.
    clients
        The number of expected clients.
    cost
        1/z²; zero if the round failed before it could reveal anything; None without noise, since
        nothing bounds what such a round reveals.
    opened_at
        When it was opened, ISO 8601. A round of the same name at another time is another round.
    """

    round_id: str
    mechanism: Mapping[str, Any] | None
    clients: int
    cost: float | None
    opened_at: str

    @property
    def tree(self) -> str | None:
        """The tree of noise that the round is in."""
        place = (self.mechanism or {}).get("tree")
        return None if place is None else str(place["tree"])


class Parts(NamedTuple):
    """The rounds of a ledger, by what an attacker knows who gets nothing but versions of the model.

    Parameters
    ----------
    in_full
        The sum of the costs of rounds whose clients were not drawn in secret.
    drawn
        For each secret draw, the probability of a client, and the sum of the costs of the rounds
        that it was for.
    """

    in_full: float
    drawn: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PrivacyBudget:
    """The most that the rounds of a model may reveal.

    Parameters
    ----------
    epsilon, delta
        As it was stated.
    allowance
        The largest sum of costs with which ε at δ stays within it.
    """

    epsilon: float
    delta: float
    allowance: float


@dataclass(frozen=True)
class PrivacyLedger:
    """The ledger of a model.

    Parameters
    ----------
    entries
        Its rounds, in the order in which they were opened.
    budget
        None if rounds may reveal anything.
    """

    entries: tuple[Entry, ...] = ()
    budget: PrivacyBudget | None = None

    @property
    def spent(self) -> float:
        """The sum of all costs; infinite after a round without noise."""
        return math.fsum(math.inf if e.cost is None else e.cost for e in self.entries)

    @property
    def parts(self) -> Parts:
        """The costs of rounds whose clients were drawn in secret, and those of all others."""
        draws: dict[tuple[str, str], tuple[float, list[float]]] = {}
        others = []
        for entry in self.entries:
            cost = math.inf if entry.cost is None else entry.cost
            draw = (entry.mechanism or {}).get("draw")
            if draw is None:
                others.append(cost)
                continue
            key = (draw["training"], draw["draw"])
            draws.setdefault(key, (draw["probability"], []))[1].append(cost)
        drawn = ((probability, math.fsum(costs)) for probability, costs in draws.values())
        return Parts(math.fsum(others), tuple(part for part in drawn if part[1]))

    def added(self, dp: PrivacyMechanism) -> float:
        """Return what a round costs besides the entries."""
        if dp.tree is None:
            return dp.cost
        paid = math.fsum(entry.cost or 0.0 for entry in self.entries if entry.tree == dp.tree.tree)
        return max(0.0, depth(dp.tree.leaf) * dp.cost - paid)

    def cost_of(self, round_id: str, otherwise: float) -> float:
        """Return the cost of the newest round of this name; ``otherwise`` if it has none."""
        costs = [entry.cost for entry in self.entries if entry.round_id == round_id]
        return otherwise if not costs or costs[-1] is None else costs[-1]

    def by_version(self, versions: Iterable[tuple[int, str | None]]) -> dict[int, float]:
        """Return the sum of costs up to each version of the model.

        It never falls: a version that goes back to an earlier one takes back nothing.

        Parameters
        ----------
        versions
            The number of each version, and the round that made it, if one did; in their order.
        """
        places = {entry.round_id: number for number, entry in enumerate(self.entries, 1)}
        found, counted = {}, 0
        for version, round_id in versions:
            counted = max(counted, places.get(round_id or "", 0))
            found[version] = PrivacyLedger(self.entries[:counted]).spent
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as it is stored."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "budget": self.budget and asdict(self.budget),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        budget = fields["budget"]
        return cls(
            tuple(Entry(**entry) for entry in fields["entries"]),
            budget and PrivacyBudget(**budget),
        )


def read_ledger(store: S3Store, model: str) -> PrivacyLedger:
    """Return the ledger of a model; an empty one if there is none."""
    return store.get_json(ModelKeys(model).ledger, PrivacyLedger.from_json) or PrivacyLedger()


def change_ledger(
    store: S3Store, model: str, change: Callable[[PrivacyLedger], PrivacyLedger]
) -> PrivacyLedger:
    """Change the ledger of a model, so that no change of another writer is lost.

    Raises
    ------
    StoreError
        Others changed it in between, each time.
    """
    key = ModelKeys(model).ledger
    for _ in conditional_write_attempts(key):
        # The ETag is read first: if another change comes in between, writing ours fails.
        head = store.head(key)
        before = read_ledger(store, model) if head else PrivacyLedger()
        after = change(before)
        if after == before or store.put_json(
            key, after.to_json(), replaces=head.etag if head else None
        ):
            break
    return after


def enter(
    store: S3Store,
    model: str,
    round_id: str,
    opened_at: str,
    dp: PrivacyMechanism | None,
    clients: int,
) -> None:
    """Enter a round that is about to open; safe to repeat, with the same ``opened_at``.

    A round without noise is entered only if the model has a ledger.

    Raises
    ------
    PrivacyBudgetError
        The model has a budget that the round would exceed.
    """

    def change(ledger: PrivacyLedger) -> PrivacyLedger:
        if dp is None and ledger == PrivacyLedger():
            return ledger
        if any((e.round_id, e.opened_at) == (round_id, opened_at) for e in ledger.entries):
            return ledger
        check_budget(ledger, model, dp)
        entry = Entry(
            round_id,
            None if dp is None else dp.to_json(),
            clients,
            None if dp is None else ledger.added(dp),
            opened_at,
        )
        return replace(ledger, entries=(*ledger.entries, entry))

    change_ledger(store, model, change)


def check_budget(ledger: PrivacyLedger, model: str, dp: PrivacyMechanism | None) -> None:
    """Check that a model's budget allows one more round.

    Raises
    ------
    PrivacyBudgetError
        The model has a budget that the round would exceed.
    """
    budget = ledger.budget
    if budget is None:
        return
    stated = f"the privacy budget of model {model!r}, ε {budget.epsilon:g} at δ {budget.delta:g}"
    if dp is None:
        raise PrivacyBudgetError(
            f"{stated}, allows no round without noise: open it with dp, for example "
            '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
        )
    left, cost = budget.allowance - ledger.spent, ledger.added(dp)
    if cost <= left:
        return
    advice = "the model takes no further rounds"
    fitting = dp.with_cost(left) if left > 0 else None
    if fitting is not None:
        least = fitting.noise_multiplier
        advice = f"one more round fits with a noise_multiplier of at least {least:.10g}"
        if fitting.adaptation is not None:
            advice += (
                f" and a count_deviation of at least {fitting.adaptation.count_deviation:.10g}"
            )
    raise PrivacyBudgetError(
        f"{stated}, allows Σ 1/z² of {budget.allowance:.6g} over its rounds; {len(ledger.entries)} "
        f"rounds have spent {ledger.spent:.6g}, and noise_multiplier {dp.noise_multiplier:g} costs "
        f"{cost:.6g} more: {advice}"
    )


def release(store: S3Store, model: str, round_id: str, opened_at: str) -> None:
    """Set the cost of a round that failed before noise was drawn to zero; safe to repeat.

    Not in a tree of noise: the next round of the same level has paid nothing.
    """

    def change(ledger: PrivacyLedger) -> PrivacyLedger:
        entries = tuple(
            replace(e, cost=0.0)
            if (e.round_id, e.opened_at) == (round_id, opened_at) and e.tree is None
            else e
            for e in ledger.entries
        )
        return replace(ledger, entries=entries)

    change_ledger(store, model, change)
