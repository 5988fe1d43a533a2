"""A federation: open rounds, list them, and get handles of rounds and models."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradshard.client import operations
from gradshard.client.model import Model
from gradshard.client.opening import encode_spec, wait_until_open
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard.client.upload_source import layout_record
from gradshard.deployment import local_engine
from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.aggregation.server_optimizers import DEFAULT_MODEL
from gradshard_core.aggregation.topologies import AUTO
from gradshard_core.errors import RoundNotFoundError, RoundStateError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.spec import DEFAULT_TIMEOUT, parse_new_spec
from gradshard_core.records.round_spec import read_spec
from gradshard_core.stragglers.layers import Naming


class Federation:
    """A deployed stack of gradshard.

    Parameters
    ----------
    stack
        The name of its CloudFormation stack, whose outputs are read when they are needed.
    bucket
        Its bucket, for clients that have no permission to read the stack.
    state_machine
        The ARN of its state machine. With ``bucket``, it is needed to open rounds.
    endpoint_url
        The endpoint of all AWS services, if it is not AWS itself; like ``AWS_ENDPOINT_URL``.
    local
        Use the local engine (``gradshard local up``).
    port
        The local engine's port.
    """

    def __init__(
        self,
        stack: str = "gradshard",
        *,
        bucket: str | None = None,
        state_machine: str | None = None,
        endpoint_url: str | None = None,
        local: bool = False,
        port: int = local_engine.DEFAULT_PORT,
    ) -> None:
        self.stack = Stack(
            stack,
            bucket=bucket,
            state_machine=state_machine,
            endpoint_url=endpoint_url,
            port=port if local else None,
        )

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.stack.store.bucket

    def open_round(
        self,
        name: str,
        clients: Sequence[str] | int,
        *,
        min_clients: int | None = None,
        timeout: int = DEFAULT_TIMEOUT,
        topology: str = AUTO,
        fan_in: int | None = None,
        order: str | None = None,
        weights: str = SHARES,
        rule: str | Mapping[str, Any] | None = None,
        layers: Naming | None = None,
        assignments: Mapping[str, Any] | None = None,
        eager: bool = False,
        shards: int | None = None,
        time_budget: float | None = None,
        layout: Mapping[str, Any] | str | Path | None = None,
        allow_nonfinite: bool = False,
        updates_from: str | None = None,
        server_optimizer: str | Mapping[str, Any] | None = None,
    ) -> Round:
        """Open a round; opening it again with the same options returns the same round.

        Parameters
        ----------
        name
            The round's id.
        clients, min_clients, timeout, topology, fan_in, weights, eager, shards, \
        time_budget, allow_nonfinite, updates_from
            As in :class:`gradshard_core.planning.spec.RoundSpec`.
        order
            ``sequential``, or such as ``tree:4,4``.
        rule
            How partial updates are averaged: ``fedavg``, ``fill``, ``drop``, or such as
            ``{"name": "salf", "p": {"model": "uniform"}}``
            (:func:`gradshard_core.stragglers.salf.parse_rule`).
        layers
            The layers of partial updates, if not given by the tensors' names
            (:func:`gradshard_core.stragglers.layers.layers_of`).
        assignments
            How the round computes each client's next assignment when it ends: ``batch_size``,
            ``epochs``, ``learning_rate`` and bounds
            (:class:`gradshard_core.stragglers.assignments.AssignmentSettings`), and ``after``, the
            round before.
        layout
            The layout that every update must have: the path of a .safetensors file with tensors
            of its names, types and shapes, such tensors by name, or ``{name: {"dtype": "F32",
            "shape": [10, 64]}, …}``. Partial updates and eager rounds need it, unless the round is
            applied to a model.
        server_optimizer
            How the averaged update becomes the next version of the model: ``fedavg``,
            ``fedavgm``, ``fedadagrad``, ``fedyogi``, ``fedadam``, or such as ``{"optimizer":
            "fedadam", "learning_rate": 0.01, "buffers": ["bn.running_*"]}``
            (:func:`gradshard_core.aggregation.server_optimizers.parse_server_optimizer`).

        Raises
        ------
        SpecError
            The options are not valid, or too long.
        UpdateError
            ``layout`` is of a file or of tensors that could not be averaged.
        RoundExistsError
            There is such a round with other options, or there was one whose objects have been
            deleted: Step Functions keeps a name for 90 days after its execution has ended.
        RoundNotFoundError
            There is no round ``updates_from``.
        RoundFailed
            It could not be opened.
        """
        fields: dict[str, Any] = {
            "clients": clients,
            "min_clients": min_clients,
            "timeout": timeout,
            "topology": topology,
            "fan_in": fan_in,
            "order": order,
            "weights": weights,
            "rule": rule,
            "layers": layers,
            "assignments": assignments,
            "eager": eager,
            "shards": shards,
            "time_budget": time_budget,
            "layout": None if layout is None else layout_record(layout),
            "allow_nonfinite": allow_nonfinite,
            "updates_from": updates_from,
            "server_optimizer": server_optimizer,
        }
        spec = parse_new_spec(fields)
        keys = RoundKeys(name)
        payload = encode_spec(spec)
        if (
            updates_from is not None
            and read_spec(self.stack.store, RoundKeys(updates_from)) is None
        ):
            raise RoundNotFoundError.of(updates_from)
        is_new = self.stack.start(keys.round_id, payload)
        wait_until_open(self.stack, name, spec, is_new=is_new)
        return Round(self.stack, name, is_new=is_new)

    def model(self, name: str = DEFAULT_MODEL) -> Model:
        """Return a handle of the federation's model; this sends no request."""
        return Model(self.stack, name)

    def rounds(self, state: str | None = None) -> Iterator[operations.ListedRound]:
        """Yield the rounds that run or have run in the last 90 days, the newest first.

        Parameters
        ----------
        state
            Only those that are ``awaiting``, ``aggregating``, ``completed`` or ``failed``.

        Raises
        ------
        SpecError
            There is no such state.
        """
        return operations.list_rounds(self.stack, state)

    def cancel_all(self, reason: str) -> Iterator[Round]:
        """Cancel every round that has not ended, and yield each when that is done.

        Raises
        ------
        SpecError
            There is no reason.
        """
        operations.check_reason(reason)
        seen: set[str] = set()
        while running := operations.running(self.stack) - seen:
            for name in sorted(running):
                round_ = self.round(name)
                # It may have been completed since it was listed.
                with contextlib.suppress(RoundStateError):
                    round_.cancel(reason)
                    yield round_
            seen |= running

    def round(self, name: str) -> Round:
        """Return a handle of a round that was opened before; this sends no request."""
        return Round(self.stack, name)
