"""The mechanism of private rounds: what one client can change."""

import pytest

from gradshard_core.errors import SpecError
from gradshard_core.privacy.privacy_mechanism import parse_privacy


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantile": 1.0}, "dp: quantile is 1.0, not a number from 0.01 to 0.99"),
        ({"quantile": 0.5, "clip_rate": 0}, "dp: clip_rate is 0, not a number from 0.001 to 10"),
        ({"quantile": 0.5, "count_deviation": True}, "dp: count_deviation is True"),
        ({"clip_rate": 0.2}, "dp: clip_rate is for a clip that adapts .* give quantile, too"),
        ({"clip": 0}, "dp: clip is 0, not a number from"),
        ({"noise_multiplier": 0}, "dp: noise_multiplier is 0, not a number from 0.01 to 1000"),
        ({"noise": 1}, "dp is {.*}, not {clip: …, noise_multiplier: …, delta: …}"),
    ],
)
def test_settings_out_of_bounds_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_privacy({"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5} | changed)
