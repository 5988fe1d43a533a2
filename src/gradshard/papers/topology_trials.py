"""Run several topologies on the updates of one round, and measure the cost of each."""

import hashlib
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradshard.client.federation import Federation
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard_core.aggregation import topologies
from gradshard_core.aggregation.addition_order import (
    check_order,
    format_order,
    natural_order,
    parse_order,
)
from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.costs import measured_round_cost, round_cost
from gradshard_core.costs.round_cost import Bill
from gradshard_core.errors import GradshardError, RoundFailed, RoundStateError
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.store import S3Store
from gradshard_core.units import MIB


@dataclass(frozen=True)
class Trial:
    """One way to aggregate.

    Parameters
    ----------
    label
        The name that people read.
    topology, fan_in, order, weights, shards
        The options of :class:`gradshard_core.specs.round_spec.RoundSpec`.
    """

    label: str
    topology: str
    fan_in: int | None = None
    order: str | None = None
    weights: str = SHARES
    shards: int | None = None

    def round_options(self) -> dict[str, Any]:
        """Return what the trial's round is opened with."""
        return {name: value for name, value in vars(self).items() if name != "label"}


@dataclass(frozen=True)
class Outcome:
    """The time and memory of a trial.

    Parameters
    ----------
    trial
        The trial.
    rejected
        The reason why it could not run; nothing below is known then.
    shards, tasks, order, groups
        The plan of the trial.
    bytes_read, bytes_written, gets, puts
        The tasks' traffic.
    invocations
        The invocations of all functions, with one arrival for each client.
    transitions
        Of the state machine, counted in its history; children that were started are among them.
    peak_mb
        The most that a task had resident.
    gb_seconds
        The GB-seconds of the tasks.
    seconds
        The seconds from the plan to the finished round.
    bill
        The price of that on AWS, in dollars.
    digest
        SHA-256 of the result.
    """

    trial: Trial
    rejected: str = ""
    shards: int = 0
    tasks: int = 0
    order: str = ""
    groups: tuple[tuple[int, ...], ...] = ()
    bytes_read: int = 0
    bytes_written: int = 0
    gets: int = 0
    puts: int = 0
    invocations: int = 0
    transitions: int = 0
    peak_mb: float = 0.0
    gb_seconds: float = 0.0
    seconds: float = 0.0
    bill: Bill | None = None
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON."""
        trial = vars(self.trial)
        if self.rejected:
            return {**trial, "rejected": self.rejected}
        measured = {k: value for k, value in vars(self).items() if k not in {"trial", "rejected"}}
        return {**trial, **measured, "bill": self.bill and self.bill.to_json()}


def trials(
    clients: int,
    names: Sequence[str] = (),
    *,
    order: str | None = None,
    weights: str = SHARES,
    shards: int | None = None,
) -> list[Trial]:
    """Return what is worth comparing for so many clients.

    Each topology in its natural order, and in the same order what ``auto`` stands for, which must
    give the same bytes; or all in one order.

    Parameters
    ----------
    clients
        N.
    names
        Only these topologies.
    order, weights, shards
        The options of all trials; M is for topologies that cut updates.

    Raises
    ------
    SpecError
        The order does not add up so many clients.
    """
    if order is not None:
        check_order(parse_order(order), clients)
    alone = topologies.resolve(topologies.AUTO, clients)
    found: dict[tuple[Any, ...], Trial] = {}

    def add(trial: Trial) -> None:
        if TOPOLOGIES[trial.topology].is_cut:
            trial = replace(trial, shards=shards)
        found.setdefault(tuple(trial.round_options().values()), trial)

    for name in names or [n for n in TOPOLOGIES if n != "shards" or n == alone]:
        topology = TOPOLOGIES[name]
        # A grid of so few would be one group.
        small = name == "grid" and clients <= topologies.MAX_FAN_IN and order is None
        fan_in = max(2, math.isqrt(clients - 1) + 1) if small else None
        add(Trial(topology.title, name, fan_in, order, weights))
        if order is None and name != "shards":
            levels = topologies.group(name, clients, [fan_in] if fan_in else [])
            natural = format_order(natural_order(levels))
            add(Trial(f"{alone} {natural}", alone, None, natural, weights))
    return list(found.values())


def compare(
    federation: Federation,
    round_: Round,
    chosen: Sequence[Trial],
    *,
    tell: Callable[[Trial], None] = lambda _trial: None,
) -> Iterator[Outcome]:
    """Run trials one after the other on the updates that were sent to a round.

    Each is a round of its own, which is removed when it has ended, well or not.

    Parameters
    ----------
    federation, round_
        The federation, and the round whose updates are averaged.
    chosen
        The trials to run.
    tell
        Called when a trial begins.
    """
    for trial in chosen:
        tell(trial)
        name = f"{round_.id[:40]}-{trial.topology}-{secrets.token_hex(4)}"
        yield _run(federation, round_, trial, name)


def contributors(round_: Round) -> list[str]:
    """Return the clients whose updates can be compared on.

    Raises
    ------
    RoundStateError
        There are none.
    """
    status = round_.status()
    rejected = {rejection["client"] for rejection in status["rejected"]}
    there = [update["client"] for update in status["arrived"] if update["client"] not in rejected]
    if not there:
        raise RoundStateError(f"no good update was sent to round {round_.id!r}: submit some first")
    return there


def _run(federation: Federation, round_: Round, trial: Trial, name: str) -> Outcome:
    clients = contributors(round_)
    try:
        opened = federation.open_round(
            name, clients, updates_from=round_.id, **trial.round_options()
        )
        manifest = opened.wait()
    except RoundFailed as error:
        outcome = Outcome(trial, rejected=str(error).partition("failed: ")[2] or str(error))
    except GradshardError as error:
        return Outcome(trial, rejected=str(error))
    else:
        outcome = _outcome(federation.stack, trial, name, manifest)
    federation.stack.store.delete_versions(RoundKeys(name).root)
    return outcome


def _outcome(stack: Stack, trial: Trial, name: str, manifest: dict[str, Any]) -> Outcome:
    update = manifest["update"]
    source = ObjectVersion(update["key"], update["version"], update["etag"], update["nbytes"])
    return Outcome(
        trial,
        digest=_digest(stack.store, source),
        transitions=stack.transitions(name),
        bill=measured_round_cost.measured(
            manifest["tasks"],
            clients=len(manifest["contributors"]),
            memory_mb=manifest["projected"]["memory_mb"],
            architecture=stack.output("Architecture"),
            nbytes=source.nbytes,
        ),
        **_measured(manifest),
    )


def _digest(store: S3Store, source: ObjectVersion) -> str:
    stream, digest = RangeStream(store, source, [(0, source.nbytes)]), hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    for start in range(0, source.nbytes, MIB):
        chunk = buffer[: min(MIB, source.nbytes - start)]
        stream.read_into(chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _measured(manifest: dict[str, Any]) -> dict[str, Any]:
    totals, memory_mb = manifest["totals"], manifest["projected"]["memory_mb"]
    tasks, clients = totals["tasks"], len(manifest["contributors"])
    return {
        **{name: totals[name] for name in ("bytes_read", "bytes_written", "gets", "puts")},
        "shards": manifest["shards"],
        "tasks": tasks,
        "order": manifest["order"],
        "groups": tuple(map(tuple, manifest["groups"])),
        "invocations": round_cost.invocations(tasks, clients, levels=len(manifest["groups"])),
        "peak_mb": totals["peak_mb"],
        "gb_seconds": totals["seconds"] * memory_mb / 1024,
        "seconds": manifest["seconds"],
    }


def agreement(outcomes: Sequence[Outcome]) -> bool:
    """Return whether trials with the same order and weights gave the same bytes."""
    digests: dict[tuple[str, str], str] = {}
    return all(
        digests.setdefault((o.order, o.trial.weights), o.digest) == o.digest
        for o in outcomes
        if not o.rejected
    )
