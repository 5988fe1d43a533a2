"""The functions that tasks run on."""

import pytest

from gradshard_core.costs.lambda_config import LambdaConfig


@pytest.mark.parametrize(("concurrency", "batch"), [(0, 40), (4, 4), (40, 40), (1000, 40)])
def test_a_batch_has_the_tasks_that_may_run_at_once(concurrency: int, batch: int) -> None:
    assert LambdaConfig(128, "arm64", concurrency=concurrency).batch == batch
