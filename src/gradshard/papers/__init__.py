r"""The cost of a round on AWS, by system: gradshard's shards beside the published systems.

gradshard's ``shards`` are what its planner takes for as many clients: a grid beyond 64.

Pure arithmetic over :mod:`gradshard_core.costs.aws_prices` and
:mod:`gradshard.papers.published_figures`.
For functions f of a system, with m_f MB and t_f seconds each,

    lambda          = Σ_f m_f/1024 · t_f · dollars per GB-second
    s3_aggregators  = GETs · dollars per GET + PUTs · dollars per PUT, of the functions
    s3_clients      = the same, of uploading the updates and fetching the result
    requests        = invocations · dollars per invocation
    step_functions  = transitions, Express requests and Express GB-seconds
    round           = Lambda and S3 of opening, collecting, planning, finalizing
    events          = notifications of uploaded objects, and the event of the round's end
    starts          = GB-seconds of the INIT phase, of every function of the round

The first two are the paper's ``agg`` column, the first three its ``full`` column; it counts none
of the others. They are counted here as if gradshard's state machine ran every system. Clients'
requests are those that each system's clients make: one for an object with the published systems,
as the paper counts, and :func:`~gradshard_core.costs.round_projection.client_requests` with
gradshard.

Time: a function that reads r bytes in g GETs takes

    t_f = start + g·latency + max(network(r), CPU per byte · r / share of a processor)

and, where whole results are held and written after they are finished, latency + network(written)
on top. A level takes as long as its slowest function, a system as long as its levels together.
"""

from collections.abc import Callable
from typing import Final

from gradshard.papers import gradshard_systems, published_systems
from gradshard.papers.estimate import Estimate, Setting

SYSTEMS: Final[dict[str, Callable[[int, Setting], Estimate]]] = {
    "shards": gradshard_systems.shards,
    "gradssharding": published_systems.gradssharding,
    "lambda_fl": published_systems.lambda_fl,
    "lifl": published_systems.lifl,
    "lambda_fl_streamed": gradshard_systems.lambda_fl,
    "lifl_streamed": gradshard_systems.lifl,
}
