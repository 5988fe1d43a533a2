from gradshard_core.planning import large_rounds, planner
from gradshard_core.planning.lambda_config import LambdaConfig
from gradshard_core.planning.spec import parse_spec
from gradshard_core.planning.spec_workload import workload_of


def test_what_bounds_a_large_round_is_said() -> None:
    assert large_rounds.notes(1000, 1000) == []
    [arrivals, functions] = large_rounds.notes(100_000, 1563)
    # Seven requests of 5,500 a second for each arrival.
    assert "within 127 s, 786 a second: the limit is S3's 5,500 GET requests" in arrivals
    assert "1,563 tasks are more than the 1,000 functions" in functions
    assert "MapConcurrency=1000" in functions


def test_a_hundred_thousand_clients_are_projected_within_a_quarter_of_an_hour() -> None:
    spec = parse_spec({"clients": 100_000})
    projection, _ = planner.choose(workload_of(spec, 10**6, 100_000), LambdaConfig(192, "arm64"))
    assert projection.seconds < 900
    assert projection.needed_mb < 192
