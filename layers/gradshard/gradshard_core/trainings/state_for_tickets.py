"""The parts of a training's state that holders of tickets do not see."""

from dataclasses import replace

from gradshard_core.records.training_state import ENDED, TrainingState


def seen_by(client: str, state: TrainingState) -> TrainingState:
    """Return a training's state as the holder of a client's ticket may know it."""
    invitation = state.invitation
    if invitation is not None and not invitation.is_open:
        is_invited = invitation.invites(client)
        invitation = replace(invitation, clients=(client,)) if is_invited else None
    return replace(
        state,
        invitation=invitation,
        silent={},
        suspects=(),
        tree=None,
        dropped_keys=(),
        drawn=(),
        counted={
            version: {client: clients[client]}
            for version, clients in state.counted.items()
            if client in clients
        },
        dollars=0.0,
        last_dollars={},
        reason=None,
        # The cause of a failed round may name clients.
        cause=state.cause if state.status == ENDED else None,
    )
