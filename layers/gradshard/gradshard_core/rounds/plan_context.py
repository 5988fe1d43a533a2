"""The input of every planning of a round: the request, the terms and the current model."""

from typing import NamedTuple

from gradshard_core.aggregation.batchnorm_buffers import Stretches
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import ModelStateError, PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds.updates_of_other_rounds import check_source
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import Masking, encoding_of
from gradshard_core.specs.round_spec import RoundSpec


class PlanRequest(NamedTuple):
    """A request of the state machine for a plan.

    Parameters
    ----------
    entered_at
        The time at which the machine entered the planning state, ISO 8601. A request with the same
        time is a repetition.
    reason
        The reason why the round goes on.
    attempt
        0 for the first plan, and one more after contributors were rejected while they were read.
    is_repeated
        Whether the machine has sent it before, to a call that may have been killed. AWS does not
        state that ``$$.State.RetryCount`` counts in a payload: if it does not, an upload that such
        a call began stays open for seven days.
    """

    entered_at: str
    reason: str
    attempt: int
    is_repeated: bool = False


class PlanContext(NamedTuple):
    """The inputs of a planning.

    Parameters
    ----------
    store, keys
        The bucket, and the keys of the round in it.
    request
        The request that is answered.
    aggregator
        The functions that the tasks will run on.
    spec, opened_at
        The terms of the round, and when it was opened.
    model
        The current version of the model, if the round makes the next one.
    """

    store: S3Store
    keys: RoundKeys
    request: PlanRequest
    aggregator: LambdaConfig
    spec: RoundSpec
    opened_at: str
    model: Version | None

    @property
    def round_id(self) -> str:
        """The id of the round."""
        return self.keys.round_id

    def model_layout(self) -> tuple[Layout | None, str]:
        """Return the layout of the model, and what error messages call it."""
        if self.model is None:
            return None, ""
        name = f"that of version {self.model.number} of model {self.model.model!r}"
        return model_registry.layout_of(self.store, self.model.tensors), name

    def masking(self) -> Masking | None:
        """Return what the plan of a masked round has before the keeper has answered."""
        terms = self.spec.masked
        if terms is None:
            return None
        layout = self.spec.layout or self.model_layout()[0]
        if layout is None:
            raise PlanError(f"masked round {self.round_id!r} has no layout")
        return Masking(terms, self.spec.expected, encoding_of(terms, layout))

    def buffers(self, layout: Layout) -> Stretches:
        """Return the stretches of the model's buffers, which the spec or the version names."""
        optimizer = self.spec.server_optimizer
        if optimizer is None or self.model is None:
            return ()
        return self.model.buffers_in(layout, optimizer)


def read_context(
    store: S3Store, keys: RoundKeys, request: PlanRequest, aggregator: LambdaConfig
) -> PlanContext:
    """Read the terms of a round and the model of which it makes a version.

    Raises
    ------
    PlanError
        The round was never opened.
    ModelStateError
        The model has another version than when the round was opened.
    SpecError
        The round averages updates that were sent to a private one.
    """
    opened = read_spec(store, keys)
    if opened is None:
        raise PlanError(f"round {keys.round_id!r} was never opened: {keys.spec} is missing")
    spec, record = opened
    check_source(store, spec)
    model = _read_model(store, keys, spec, record.get("model_version"))
    return PlanContext(store, keys, request, aggregator, spec, record["opened_at"], model)


def _read_model(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, opened_with: int | None
) -> Version | None:
    optimizer = spec.server_optimizer
    if optimizer is None:
        return None
    current = model_registry.read_current(store, optimizer.model)
    if current.number != opened_with:
        raise ModelStateError(
            f"round {keys.round_id!r} began from version {opened_with} of model "
            f"{optimizer.model!r}, but version {current.number} is current; open a new round"
        )
    return current
