"""Read the options of a training: check each, and which go with one another."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from gradshard_core.aggregation.server_optimizers import LINEAR
from gradshard_core.errors import SpecError
from gradshard_core.limits.aws_limits import PREFIX_GETS
from gradshard_core.limits.own_limits import MAX_COUNTED, MAX_SPEC_BYTES
from gradshard_core.privacy.secret_client_sampling import SecretSample
from gradshard_core.specs.masking_options import NOT_IN_MASKED_TRAININGS, NOT_MASKED
from gradshard_core.specs.option_kinds import check_names
from gradshard_core.specs.round_spec_checks import parse_new_spec
from gradshard_core.specs.training_round_options import roster_of
from gradshard_core.specs.training_spec import BUFFERED, DEFAULTS, OPTIONS, TrainingSpec

NOT_SECRET: Final[Mapping[str, str]] = {
    "noise_tree": "a tree of noise does without secret draws",
    "sample": "probability decides how many clients are drawn",
    "over_selection": "a round waits for nobody: it lasts for its timeout",
    "seed": "whoever knows a seed can compute the draws",
    "evaluate_every": "an evaluation without a quorum fails, and would pause the training",
    "stop": "metrics have no noise, and the number of rounds would tell some of them",
    "budget": "what a round costs tells how many clients were drawn",
}
"""Options that do not go with ``secret_sample``, with the reasons."""


def parse_training_spec(fields: Mapping[str, Any]) -> TrainingSpec:
    """Check the options of a training.

    Parameters
    ----------
    fields
        The fields of :class:`TrainingSpec` as JSON holds them; None stands for the default.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds, or does not go with another.
    """
    check_names(fields, OPTIONS, "training")
    given = {name: value for name, value in fields.items() if value is not None}
    for name in ("rounds", "round"):
        if name not in given:
            raise SpecError(f"{name} is missing from the training's options")
    spec = TrainingSpec(**{n: OPTIONS[n].kind.parse(n, value) for n, value in given.items()})
    _check(spec)
    nbytes = len(json.dumps(spec.to_json()))
    if nbytes > MAX_SPEC_BYTES:
        raise SpecError(
            f"the training's options are {nbytes} bytes of JSON, over {MAX_SPEC_BYTES}: let "
            "clients join instead of listing them, or shorten their ids"
        )
    return spec


def _check(spec: TrainingSpec) -> None:
    """Check what depends on more than one field."""
    if spec.clients is not None and spec.needed() > len(spec.clients):
        raise SpecError(
            f"{spec.needed()} clients are needed for a round, and clients has "
            f"{len(spec.clients)}: list more, or lower sample, min_clients or what the rule needs; "
            "with secret_sample, raise probability"
        )
    _check_looks(spec)
    if spec.over_selection and spec.sample is None:
        raise SpecError("over_selection is for sampling: give sample, too")
    if spec.terms.masked is not None:
        _check_masked(spec)
    elif spec.sample is not None and spec.sample >= 1:
        parse_new_spec({**spec.round, "clients": int(spec.sample)})
    if spec.noise_tree is not None:
        _check_noise_tree(spec, spec.noise_tree)
    if spec.secret_sample is not None:
        _check_secret_sample(spec, spec.secret_sample)
    if spec.is_buffered:
        _check_buffered(spec)
        return
    for name in (
        "updates_per_version",
        "updates_per_client",
        "max_staleness",
        "staleness_exponent",
    ):
        if getattr(spec, name) != DEFAULTS[name]:
            raise SpecError(f"{name} is for mode {BUFFERED!r}: give mode, too")


def _check_looks(spec: TrainingSpec) -> None:
    """Check that S3 answers all clients of a training that look for invitations.

    More may join later than are known of here.
    """
    known = max(spec.needed(), len(spec.clients or ()))
    if known > spec.poll_interval * PREFIX_GETS:
        raise SpecError(
            f"poll_interval is {spec.poll_interval:g} s, in which each of at least {known:,} "
            f"clients reads the training's state, and S3 answers {PREFIX_GETS:,} reads a second: "
            f"give {math.ceil(known / PREFIX_GETS)} s or more"
        )


def _check_masked(spec: TrainingSpec) -> None:
    """Check what a training with masked rounds goes with."""
    if spec.is_buffered:
        raise SpecError(f"masked: leave out mode {BUFFERED!r}: {NOT_MASKED['inbox']}")
    for name, reason in NOT_IN_MASKED_TRAININGS.items():
        if getattr(spec, name) is not None:
            raise SpecError(f"masked: leave out {name}: {reason}")
    # Later clients are counted when a round is opened; no round has more than the ring holds.
    awaited = len(spec.clients or ()) if spec.sample is None else spec.sample
    if awaited >= 1:
        invited = math.ceil(awaited * (1 + spec.over_selection))
        parse_new_spec({**spec.round, "clients": roster_of(invited)})


def _check_private(
    spec: TrainingSpec, option: str, *, buffered: str, masked: str, adaptive: str
) -> None:
    """Check that an option of private rounds goes with the others; the reasons say why not."""
    if spec.is_buffered:
        raise SpecError(
            f"{option}: a buffered training invites nobody, so {buffered}: leave out mode "
            f"{BUFFERED!r} or {option}"
        )
    if spec.terms.dp is None:
        raise SpecError(f"{option} is for private rounds: give dp, too, among round's options")
    if spec.terms.masked is not None:
        raise SpecError(f"{option}: {masked}: leave out masked or {option}")
    if spec.terms.dp.adaptation is not None:
        raise SpecError(f"{option}: {adaptive}: leave out quantile")


def _check_noise_tree(spec: TrainingSpec, leaves: int) -> None:
    """Check what a tree of noise goes with, and that it has clients for all of its rounds."""
    _check_private(
        spec,
        "noise_tree",
        buffered="clients take part again and again in a tree",
        masked="the key of a masked round's noise is made of the clients' seeds, which the keeper "
        "has for one round only",
        adaptive="noise cancels only if all rounds have the same clip",
    )
    if spec.server_optimizer.optimizer not in LINEAR:
        raise SpecError(
            f"noise_tree: {spec.server_optimizer.optimizer} scales each step on its own, so no "
            f"noise would cancel: take {' or '.join(LINEAR)}"
        )
    sample = spec.sample
    if sample is None or sample < 1:
        raise SpecError(
            f"noise_tree: sample is {sample}, and every round's sum is divided by it: give a whole "
            "number of clients"
        )
    if leaves > spec.rounds:
        raise SpecError(
            f"noise_tree is {leaves}, over the {spec.rounds} rounds of the training: give "
            f"{spec.rounds} at most"
        )
    invited = math.ceil(max(sample, spec.needed()) * (1 + spec.over_selection))
    most = MAX_COUNTED if spec.clients is None else min(MAX_COUNTED, len(spec.clients))
    if leaves * invited > most:
        who = f"the state names {MAX_COUNTED}" if most == MAX_COUNTED else f"clients has {most}"
        fitting = most // invited
        advice = f"give a noise_tree of {fitting} at most, or lower sample"
        raise SpecError(
            f"noise_tree: {leaves} rounds of a tree invite {leaves * invited} different clients, "
            f"{invited} each, and {who} at most: {advice if fitting > 1 else 'lower sample'}"
        )


def _check_secret_sample(spec: TrainingSpec, sample: SecretSample) -> None:
    """Check what secret draws go with, and that a list has clients enough for them."""
    _check_private(
        spec,
        "secret_sample",
        buffered="nobody can be drawn",
        masked="a masked round has its clients agree to the list of all",
        adaptive="a clip that adapts goes by the number of clients that came, which tells who was "
        "drawn",
    )
    for name, reason in NOT_SECRET.items():
        if getattr(spec, name) != DEFAULTS[name]:
            raise SpecError(f"secret_sample: leave out {name}: {reason}")
    if "min_clients" in spec.round:
        raise SpecError(
            "secret_sample: leave out min_clients: a round with a quorum would tell who was drawn"
        )
    if "time_budget" in spec.round:
        raise SpecError(
            "secret_sample: leave out time_budget: whether a round keeps it depends on the updates "
            "that came, and one that does not fails. Give shards instead"
        )
    there = len(spec.clients or ())
    if max(sample.fewest, there) > spec.most_drawn:
        raise SpecError(
            f"secret_sample: with probability {sample.probability:g}, clients are drawn from at "
            f"least {sample.fewest}; clients has {there}, and a round takes {spec.most_drawn} at "
            "most: give a larger probability, another topology or fewer clients"
        )


def _check_buffered(spec: TrainingSpec) -> None:
    """Check what mode ``buffered`` goes with."""
    if spec.updates_per_version is None:
        raise SpecError(
            "mode 'buffered' needs updates_per_version, how many updates make a version"
        )
    if spec.sample is not None:
        raise SpecError(
            "mode 'buffered' invites nobody: each client trains at its own pace; leave out sample "
            "and over_selection"
        )
    each = spec.updates_per_client
    if each > spec.staleness + 1:
        raise SpecError(
            f"updates_per_client is {each}, and max_staleness {spec.staleness}: a client sends one "
            f"update from each version, so a version takes at most {spec.staleness + 1} of them; "
            "lower updates_per_client"
        )
    if each > 1 and spec.buffered_round_spec("t", 1, None).robust_rule is not None:
        raise SpecError(
            f"updates_per_client is {each}, and a robust rule takes each update for another "
            "client's: leave it out"
        )
    if spec.clients is not None and spec.updates_per_version > len(spec.clients):
        raise SpecError(
            f"updates_per_version is {spec.updates_per_version}, and clients has "
            f"{len(spec.clients)}: from one version each client sends one update, so they would "
            "never be enough; lower updates_per_version"
        )
    counted = spec.updates_per_version * (spec.staleness + 1)
    if counted > MAX_COUNTED:
        raise SpecError(
            f"updates_per_version × (max_staleness + 1) is {counted}, over {MAX_COUNTED}: lower "
            "one of them"
        )
    spec.buffered_round_spec("t", 1, None)
