"""One policy for all retries."""

import pytest

from gradshard_core.errors import StoreError
from gradshard_core.s3 import retries
from gradshard_core.s3.retries import Retries, conditional_write_attempts
from gradshard_core.s3.traffic import Meter


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the longest possible pause before each retry instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def give_up(times: int, reasons: str) -> StoreError:
    return StoreError(f"failed {times} times: {reasons}")


def test_the_last_failure_raises_a_summary_of_all(pauses: list[float]) -> None:
    meter = Meter()
    attempts = Retries(meter, attempts=4)
    for reason in ("503", "reset", "503"):
        attempts.record_failure(reason, give_up)
    with pytest.raises(StoreError, match=r"^failed 4 times: 2 × 503; 2 × reset$"):
        attempts.record_failure("reset", give_up)
    assert meter.take().retries == 3
    assert pauses == [0.2, 0.4, 0.8]


def test_progress_resets_the_count(pauses: list[float]) -> None:
    attempts = Retries(attempts=2)
    for _ in range(5):
        attempts.record_failure("reset", give_up)
        attempts.reset()
    assert pauses == [0.2] * 5


def test_a_conditional_write_is_attempted_a_bounded_number_of_times(pauses: list[float]) -> None:
    made: list[int] = []
    with pytest.raises(StoreError, match="rounds/r/callback: 16 conditional writes in a row"):
        made.extend(conditional_write_attempts("rounds/r/callback"))
    assert len(pauses) == retries.MAX_CONDITIONAL_WRITES - 2
    assert max(pauses) == 1.6
