from gradshard_core.costs import large_round_limits
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.workload_from_spec import workload_of
from gradshard_core.planning import shard_count
from gradshard_core.specs.round_spec_checks import parse_spec


def test_what_bounds_a_large_round_is_said() -> None:
    assert large_round_limits.notes(1000, 1000) == []
    [arrivals, in_small_regions, functions] = large_round_limits.notes(100_000, 1563)
    # Seven requests of 5,500 a second for each arrival.
    assert "within 127 s, 786 a second: the limit is S3's 5,500 GET requests" in arrivals
    assert "1,563 tasks are more than the 1,000 functions" in functions
    assert "MapConcurrency=1000" in functions
    assert (
        "In the smallest regions it is 333 s: the limit is SNS's 300 messages" in in_small_regions
    )
    # Each transition starts a child of forty tasks.
    assert "Step Functions' 800 state transitions a second, which start 32,000 tasks" in functions


def test_the_tightest_quota_of_arrivals_comes_first() -> None:
    services = ["S3's 5,500", "S3's 3,500", "Lambda's 1,000", "SNS's 30,000"]
    for found, service in zip(large_round_limits.arrival_quotas(2000), services, strict=True):
        assert found.name.startswith(service)


def test_a_hundred_thousand_clients_are_projected_within_a_quarter_of_an_hour() -> None:
    seconds = []
    assignments = {"batch_size": 8, "epochs": 1, "learning_rate": 0.1}
    for terms in ({}, {"assignments": assignments}, {"rule": "norm_clip"}):
        load = workload_of(parse_spec({"clients": 100_000, **terms}), 10**6, 100_000)
        projection, _ = shard_count.choose(load, LambdaConfig(192, "arm64"))
        assert projection.needed_mb < 192
        seconds.append(projection.seconds)
    assert seconds[0] < min(seconds[1:])
    assert max(seconds) < 900
