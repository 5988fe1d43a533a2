"""Settings of assignments: what is checked."""

import math
from typing import Any

import pytest

from gradshard_core.errors import SpecError
from gradshard_core.stragglers.assignment_settings import (
    AssignmentSettings,
    parse_assignment_settings,
)

TERMS = AssignmentSettings(batch_size=16, epochs=2, learning_rate=0.05)


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0, not a whole number above zero"),
        ({"epochs": 1.5}, r"epochs is 1\.5, not a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": math.nan}, "learning_rate is nan, not a number above zero"),
        ({"learning_rate": None}, "learning_rate of the base settings is missing"),
        ({"target_seconds": -1}, "target_seconds is -1"),
        ({"smoothing": 2}, "smoothing is 2, not over 0 and at most 1"),
        ({"max_epochs": 1}, "epochs is 2 in the base settings, out of its bounds 2 to 1"),
        ({"min_batch_size": 32}, "batch_size is 16 in the base settings, out of its bounds 32"),
        ({"momentum": 0.5}, "unknown field 'momentum'"),
    ],
)
def test_terms_that_make_no_sense_are_rejected(stated: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        parse_assignment_settings(TERMS.to_json() | stated)


def test_base_settings_are_required() -> None:
    with pytest.raises(SpecError, match="epochs of the base settings is missing"):
        parse_assignment_settings({"batch_size": 16, "learning_rate": 0.1})
