"""Noise in a tree: later rounds of a private training take earlier noise out of the model again.

After Kairouz et al. 2021, "Practical and Private (Deep) Learning without Sampling or Shuffling"
(DP-FTRL, https://arxiv.org/abs/2103.00039). The rounds of a tree are its *leaves*, numbered from 1.
Round t draws noise Z_t with a key of its own, for the *node* of the leaves (t - l, t], where l is
the lowest bit of t. It releases

    S_t + Z_t - the noise of all nodes within (t - l, t] that is still in the model,

with S_t the sum of its clipped updates in whole numbers. If no round fails, these nodes end with
the leaves t - 1, t - 2, t - 4, … above t - l, so the model has the noise of the nodes of t's binary
digits: at most log2(t) + 1 of them.

**The guarantee.** What round t releases is a function of earlier releases and of the sum of the
updates in its node, plus Z_t: the nodes whose noise it takes out have the other updates in it. So
round t is a Gaussian mechanism of these updates. A client takes part in one leaf of a tree, and
a leaf is in at most *b* nodes, where b is the number of binary digits of the number of leaves. So
the rounds of a tree reveal what b private rounds do: Σ 1/z² is b/z². This is the
``SingleEpochTreeAggregationDpEvent`` of Google's dp-accounting.

**A round that fails** after it was planned uses up its leaf: its noise is never used again, and
its updates are in no other node. The noise that it would have taken out stays in the model until
the next round whose node has it. Noise may also be *forgotten*, so that it stays forever: all later
nodes are then without the updates before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Self

import numpy as np

from gradshard_core.aggregation.kernel import Source
from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import check_id
from gradshard_core.privacy.noise import BLOCK

MAX_LEAVES: Final = 2048
"""The most rounds of a tree."""


def lowest_bit(leaf: int) -> int:
    """Return the number of leaves of the node that ends with ``leaf``."""
    return leaf & -leaf


def depth(leaves: int) -> int:
    """Return the largest number of nodes that have the same one of so many leaves."""
    return leaves.bit_length()


MAX_CANCELLED: Final = depth(MAX_LEAVES) - 1
"""The most rounds whose noise a round takes out: as many as it does if no round fails."""


class Place(NamedTuple):
    """The place of a round in a tree.

    Parameters
    ----------
    training
        The training whose tree it is.
    tree
        The id of the tree, which no other tree has.
    leaf
        The round's number in the tree, from 1.
    cancels
        The earlier rounds whose noise it takes out.
    divisor
        n, by which the sum of every round of the training is divided. It must not change, because
        the noise would not cancel.
    """

    training: str
    tree: str
    leaf: int
    cancels: tuple[str, ...]
    divisor: int

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_place` reads."""
        return {**self._asdict(), "cancels": list(self.cancels)}


def parse_place(stated: Any) -> Place:
    """Read the place of a round, which a training states.

    Raises
    ------
    SpecError
        It has other fields, or a number is out of its bounds.
    """
    if not isinstance(stated, Mapping) or stated.keys() != set(Place._fields):
        raise SpecError(f"dp: tree is {stated!r}, which the training states: leave it out")
    cancels, numbers = stated["cancels"], (stated["leaf"], stated["divisor"])
    is_list = isinstance(cancels, Sequence) and not isinstance(cancels, str)
    if not is_list or len(cancels) > MAX_CANCELLED or not isinstance(stated["tree"], str):
        raise SpecError(f"dp: tree is {stated!r}, which the training states: leave it out")
    for number in numbers:
        if type(number) is not int or number < 1:
            raise SpecError(f"dp: tree has {number!r}, not a whole number from 1")
    return Place(
        check_id("training", stated["training"]),
        stated["tree"],
        stated["leaf"],
        tuple(check_id("round", name) for name in cancels),
        stated["divisor"],
    )


@dataclass(frozen=True)
class NoiseTree:
    """The progress of a training in its tree, as its state has it.

    Parameters
    ----------
    number
        Of the tree, from 1.
    leaf
        The leaf of the next round.
    live
        The leaves and ids of the rounds whose noise is in the model, and will be taken out.
    taken
        The clients that were invited to a leaf of this tree, sorted.
    is_forgotten
        Whether the noise of the round that is under way is to stay in the model.
    """

    number: int = 1
    leaf: int = 1
    live: tuple[tuple[int, str], ...] = ()
    taken: tuple[str, ...] = ()
    is_forgotten: bool = False

    @property
    def cancels(self) -> tuple[tuple[int, str], ...]:
        """The leaves and rounds whose noise the next round takes out.

        After many failures these may be more than :data:`MAX_CANCELLED`, of which the oldest wait
        for a later round.
        """
        first = self.leaf - lowest_bit(self.leaf)
        return tuple((leaf, name) for leaf, name in self.live if leaf > first)[-MAX_CANCELLED:]

    @property
    def rounds(self) -> frozenset[str]:
        """The rounds whose keys are still needed."""
        return frozenset(name for _, name in self.live)

    def place(self, training: str, since: str, divisor: int) -> Place:
        """Return the place of the next round.

        Parameters
        ----------
        training, since
            The training, and when it was started.
        divisor
            n of the sums.
        """
        cancels = tuple(name for _, name in self.cancels)
        return Place(training, f"{since} {self.number}", self.leaf, cancels, divisor)

    def after(
        self, round_id: str, clients: Sequence[str], leaves: int, *, is_completed: bool
    ) -> Self:
        """Return the progress after a round that was planned, or the beginning of the next tree.

        Parameters
        ----------
        round_id, clients
            The round, and whom it invited.
        leaves
            The number of leaves of a tree.
        is_completed
            Whether its release is in the model.
        """
        if self.leaf >= leaves:
            return type(self)(self.number + 1)
        live = self.live
        if is_completed:
            own = () if self.is_forgotten else ((self.leaf, round_id),)
            live = (*(node for node in live if node not in self.cancels), *own)
        return replace(
            self,
            leaf=self.leaf + 1,
            live=tuple(node for node in live if self._is_taken_out(node[0], leaves)),
            taken=tuple(sorted({*self.taken, *clients})),
            is_forgotten=False,
        )

    def _is_taken_out(self, leaf: int, leaves: int) -> bool:
        """Return whether a leaf after this one takes out the noise that ``leaf`` has put in."""
        while leaf <= self.leaf:
            leaf += lowest_bit(leaf)
        return leaf <= leaves

    def forget(self, *, is_under_way: bool) -> Self:
        """Return the progress without any noise that is to be taken out; keys are not needed.

        Parameters
        ----------
        is_under_way
            Whether a round has been invited to that has not been closed.
        """
        return replace(self, live=(), is_forgotten=is_under_way)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the progress from a state."""
        live = tuple((leaf, name) for leaf, name in fields["live"])
        return cls(**{**fields, "live": live, "taken": tuple(fields["taken"])})


class CancellingNoise:
    """A round's own noise minus that of earlier rounds: a source of the kernel, of int64.

    Parameters
    ----------
    own
        The noise of the round's node.
    cancelled
        The noise that is taken out, from the same element on.
    """

    def __init__(self, own: Source, cancelled: Sequence[Source]) -> None:
        self._own, self._cancelled = own, cancelled
        self._drawn = np.empty(BLOCK if cancelled else 0, np.int64)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the noise of the next elements, 8 bytes each."""
        self._own.read_into(buffer)
        total = np.frombuffer(buffer, np.int64)
        for source in self._cancelled:
            for first in range(0, len(total), BLOCK):
                part = total[first : first + BLOCK]
                drawn = self._drawn[: len(part)]
                source.read_into(memoryview(drawn).cast("B"))
                np.subtract(part, drawn, out=part)
