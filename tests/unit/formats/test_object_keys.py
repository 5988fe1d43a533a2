"""The names of objects, and the ids in them."""

import re

import pytest

from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys, check_id, parse_update_key


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a b", "a/b", "ä", "a\n", "a" * 65, None]
)
@pytest.mark.parametrize("kind", ["round", "client", "model"])
def test_rejects_ids(kind: str, name: object) -> None:
    with pytest.raises(SpecError, match=f"{kind} id"):
        check_id(kind, name)


def test_the_id_of_a_round_is_a_name_that_step_functions_logs() -> None:
    """https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html."""
    with pytest.raises(SpecError, match=r"round id 'v1\.2' is not .* letters, digits, underscores"):
        RoundKeys("v1.2")
    assert parse_update_key("rounds/v1.2/updates/a.safetensors") is None
    longest = "a" + "Z9_-" * 15 + "abc"
    assert check_id("round", longest) == longest
    assert re.fullmatch("[0-9A-Za-z_-]{1,80}", longest)
    assert check_id("client", "host.example.org") == "host.example.org"


def test_update_keys() -> None:
    assert parse_update_key(RoundKeys("r1").update("a.b")) == ("r1", "a.b")
    assert parse_update_key("rounds/r1/updates/a/b.safetensors") == ("r1", "a/b")
    assert parse_update_key("rounds/r1/update.safetensors") is None
    assert parse_update_key("rounds/r1/updates/a.npy") is None


@pytest.mark.parametrize("name", ["", "a" * 41, "a.b", "-a", "ä", "a/b"])
def test_a_training_has_an_id_that_its_rounds_ids_can_begin_with(name: str) -> None:
    with pytest.raises(SpecError, match=r"training id .* is not 1 to 40 ASCII letters"):
        TrainingKeys(name)


def test_the_longest_id_of_a_round_is_one() -> None:
    keys = TrainingKeys("a" * 40)
    longest = keys.round_id(99_999, 99, is_evaluation=True)
    assert len(longest) <= 64
    assert keys.record(longest).endswith(f"{longest}.json")
