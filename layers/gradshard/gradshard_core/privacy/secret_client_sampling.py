"""Secret draws: the clients of a private round, each drawn on its own by what nobody can compute.

Each member is drawn with the probability q, by random bits that are drawn for the round, and the
sum is divided by a stated number n. Whoever gets nothing but the versions of the model cannot know
whether a client was in a round. Against them, and them alone, a round is the Poisson-sampled
Gaussian mechanism (Mironov, Talwar and Zhang 2019, https://arxiv.org/abs/1908.10530): with v the
clipped update of a client, s what the others add and p the density of the noise, they tell

    (1 - q) · p(x - s) + q · p(x - s - v)   from   p(x - s),

the release if the client had sent zeros whenever it was drawn. This is so only while

- n does not depend on who was drawn: a mean over those who came would tell their number;
- a client in a round never makes a release more likely: otherwise a release tells that the client
  was in it. So these rounds have no quorum. One to which nobody sends a good update releases noise.
  (If clients make releases less likely, such as by too much work for a task, q is smaller for those
  that are released, and so is what they tell);
- what others add does not depend on whether the client was drawn. So a round always lasts for its
  timeout, however early all have answered. If the updates do not fit together, the round fails
  instead of leaving some out;
- a round that fails is repeated with the same clients. What it may have computed then counts as
  more of the same draw: k tries are one round with the noise multiplier z / √k.

A client's update may depend on its own earlier draws, as with a residual: given all releases so
far, the next one is a mixture over v of the mechanisms above, and a Rényi divergence of mixtures is
at most the largest of its parts. The updates of *others* must not depend on them.

**Discrete noise.** It is that of :mod:`gradshard_core.privacy.noise`, whose Rényi divergence of
every order is that of the Gaussian or less. For a whole order α, E[(1 - q + q·P/Q)^α] is a sum of
positive multiples of such terms, and so no larger than with Gaussian noise. The other direction is
no larger than this one: theorem 5 of that paper asks for a map that is its own inverse and swaps
the two densities, which x → 2s + v - x is on whole numbers, too. So whole orders are accounted for.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import check_id

NOBODY_BITS: Final = 44
"""-log₂ of the largest probability of drawing nobody beside a client. A draw of nobody is repeated,
since a round has clients: this adds as little to δ as the noise's own rounding does."""

LEAST_PROBABILITY: Final = 2.0**-64
"""That of one outcome of the random bits of a client."""

MAX_DIVISOR: Final = 100_000


class SecretSample(NamedTuple):
    """How clients are drawn.

    Parameters
    ----------
    probability
        q, with which each is drawn.
    divisor
        n, by which the sum of every round is divided.
    """

    probability: float
    divisor: int

    @property
    def fewest(self) -> int:
        """The fewest members with which a round is drawn (:data:`NOBODY_BITS`)."""
        return 1 + math.ceil(NOBODY_BITS * math.log(2) / -math.log1p(-self.probability))


class SecretDraw(NamedTuple):
    """The draw that a round has its clients from.

    Parameters
    ----------
    training
        The training that has drawn them.
    draw
        The id of the draw, which repetitions of a round share.
    probability, divisor
        As in :class:`SecretSample`.
    """

    training: str
    draw: str
    probability: float
    divisor: int

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_secret_draw` reads."""
        return self._asdict()


def parse_secret_sample(stated: Any) -> SecretSample:
    """Read how a training draws its clients.

    Raises
    ------
    SpecError
        It has other fields, or a number is out of its bounds.
    """
    if not isinstance(stated, Mapping) or stated.keys() != set(SecretSample._fields):
        raise SpecError(
            f"secret_sample is {stated!r}, not {{probability: …, divisor: …}}, for example "
            '{"probability": 0.05, "divisor": 50}'
        )
    return _checked(stated["probability"], stated["divisor"], "secret_sample")


def parse_secret_draw(stated: Any) -> SecretDraw:
    """Read the draw of a round, which a training states.

    Raises
    ------
    SpecError
        It has other fields, or a number is out of its bounds.
    """
    is_draw = isinstance(stated, Mapping) and stated.keys() == set(SecretDraw._fields)
    if not is_draw or not isinstance(stated["draw"], str):
        raise SpecError(f"dp: draw is {stated!r}, which the training states: leave it out")
    sample = _checked(stated["probability"], stated["divisor"], "dp: draw")
    return SecretDraw(check_id("training", stated["training"]), stated["draw"], *sample)


def _checked(probability: Any, divisor: Any, whose: str) -> SecretSample:
    if not isinstance(probability, float) or not LEAST_PROBABILITY <= probability < 1:
        raise SpecError(f"{whose}: probability is {probability!r}, not a number between 0 and 1")
    if type(divisor) is not int or not 2 <= divisor <= MAX_DIVISOR:
        raise SpecError(
            f"{whose}: divisor is {divisor!r}, not a whole number from 2 to {MAX_DIVISOR}"
        )
    return SecretSample(probability, divisor)
