"""What a training costs, by the cost model."""

import pytest

from gradshard_core.costs import aws_prices
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB, LambdaConfig
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings import training_cost

AGGREGATOR = LambdaConfig(DEFAULT_MEMORY_MB, "arm64")


@pytest.mark.parametrize("nbytes", [100_000, 10_000_000])
def test_a_hundred_rounds_of_ten_clients_cost_what_the_documentation_says(nbytes: int) -> None:
    spec = parse_training_spec(
        {
            "rounds": 100,
            "clients": [f"c{number}" for number in range(10)],
            "round": {"server_optimizer": "fedavg"},
        }
    )
    assert spec.clients is not None
    terms = spec.round_spec(spec.clients, 10, None)
    rounds = 100 * training_cost.projected(terms, nbytes, AGGREGATOR)
    # Each client looks every 5 s while a round takes a minute, and fetches the model.
    clients = 100 * 10 * (60 / spec.poll_interval + 1) * aws_prices.DOLLARS_PER_GET
    assert 0.045 < rounds < 0.05
    assert 0.0045 < clients < 0.0055
    assert rounds + clients <= 0.15
    assert 100 * training_cost.overhead(10, AGGREGATOR) == pytest.approx(0.0106, abs=1e-4)


def test_a_hundred_versions_of_ten_updates_cost_what_the_documentation_says() -> None:
    fields = {"rounds": 100, "mode": "buffered", "updates_per_version": 10}
    spec = parse_training_spec({**fields, "round": {"server_optimizer": "fedavg"}})
    terms = spec.buffered_round_spec("t", 1, None)
    assert 100 * training_cost.projected(terms, 10_000_000, AGGREGATOR) == pytest.approx(
        0.065, abs=5e-3
    )
