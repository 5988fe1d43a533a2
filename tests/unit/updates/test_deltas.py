"""Changes of models of each type."""

import ml_dtypes
import numpy as np
import pytest

from gradshard.updates.deltas import change_of
from gradshard_core.errors import UpdateError


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16, "i8", "i1", "u2"])
def test_a_change_has_the_models_type_and_leads_from_it_to_what_was_trained(dtype: str) -> None:
    before = {"w": np.array([1, 2, 3], dtype), "kept": np.array(1, dtype)}
    after = {"w": np.array([2, 2, 5], dtype)}
    change = change_of(before, after)
    assert change.keys() == {"w"}
    assert change["w"].dtype == before["w"].dtype
    assert (before["w"] + change["w"] == after["w"]).all()


def test_an_unsigned_tensor_may_not_fall() -> None:
    before, after = {"n": np.array([3, 4], "u1")}, {"n": np.array([3, 3], "u1")}
    with pytest.raises(UpdateError, match="tensor 'n' is U8 and decreased in training"):
        change_of(before, after)
