"""What a finished round was charged for."""

from typing import Any

import pytest

from gradshard_core.costs.measured_round_cost import measured
from gradshard_core.units import MIB


def test_only_tasks_that_started_cold_pay_for_it() -> None:
    def starts(*cold: bool) -> float:
        report = {"level": 0, "seconds": 1.0, "gets": 1, "puts": 1}
        return measured(
            [report | {"is_cold": is_cold} for is_cold in cold],
            clients=3,
            memory_mb=128,
            architecture="arm64",
            nbytes=MIB,
        ).starts

    # 0.13 CPU-seconds at a share of 128 / 1769 of a processor, after 0.1 s of the runtime.
    each = 128 / 1024 * (0.1 + 0.13 * 1769 / 128) * 0.0000133334
    assert starts(True, True) - starts(True, False) == pytest.approx(each)
    assert starts(False, False) > 0


def test_a_finished_round_is_priced_by_the_bytes_that_clients_sent() -> None:
    report = {"level": 0, "seconds": 1.0, "gets": 1, "puts": 1, "is_cold": False}
    terms: dict[str, Any] = {"clients": 2, "memory_mb": 192, "architecture": "arm64"}
    large, small = 3_000_000_000, 800_000_000
    bills = [
        measured([report], nbytes=large, sent=sent, **terms).s3_clients
        for sent in ((), (large, large), (small, large))
    ]
    assert bills[0] == bills[1]
    # Eight parts, and three requests more, or one request.
    assert bills[0] - bills[2] == pytest.approx(10 * 0.005 / 1000)
