"""``gradshard verify``, on rounds in memory."""

import json
from typing import Any

import numpy as np
import pytest

from gradshard.cli import main
from gradshard.client import federation
from gradshard_core.formats.object_keys import RoundKeys
from tests.unit.fakes import MemoryStack
from tests.unit.model_rounds import MemoryFederation

UPDATES = [{"w": np.full(40_000, number, np.float32)} for number in range(3)]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    """A federation whose round r1 has completed."""
    made = MemoryFederation(monkeypatch)
    monkeypatch.setattr(federation, "Stack", lambda *_, **__: MemoryStack(made.store))
    made.model.put({"w": np.zeros(40_000, np.float32)})
    made.go(UPDATES, [1, 2, 3], server_optimizer={"optimizer": "fedavgm"})
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *arguments], prog_name="gradshard")
    code = ended.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def break_object(rounds: MemoryFederation, key: str) -> None:
    """Flip the last bit of an object, under the same ETag."""
    blob = bytearray(rounds.store.objects[key])
    blob[-1] ^= 1
    rounds.store.objects[key] = bytes(blob)


@pytest.mark.usefixtures("rounds")
def test_says_what_was_compared_and_how_likely_an_error_was_to_be_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said, complaint = run(capsys, "r1", "--sample", "1%", "--seed", "x")
    assert (code, complaint) == (0, "")
    first, extent, *others = said.splitlines()
    assert first == "round r1 is correct, as far as it was checked"
    assert extent.startswith("  1 of 3 ranges, 53.3 kB of 160.0 kB, recomputed from 3 updates")
    assert extent.endswith(", with seed x")
    keys = [line.partition(":")[0].strip() for line in others if "is as published" in line]
    assert keys == [
        "rounds/r1/update.safetensors",
        "models/model/rounds/r1/model.safetensors",
        "models/model/rounds/r1/momentum.safetensors",
    ]
    assert "a single wrong byte would have been found with a probability of 33.33 %" in said
    assert "wrong bytes in 3 ranges, so 106.7 kB of them" in said  # all ranges there are
    assert "a single wrong byte would have been found with certainty" not in said
    _, whole, _ = run(capsys, "r1", "--sample", "1.0")
    assert "a single wrong byte would have been found with certainty" in whole


def test_prints_json_and_fails_if_a_bit_is_wrong(
    rounds: MemoryFederation, capsys: pytest.CaptureFixture[str]
) -> None:
    break_object(rounds, RoundKeys("r1").result)
    code, said, complaint = run(capsys, "r1", "--sample", "100%", "--json")
    found: dict[str, Any] = json.loads(said)
    assert (code, found["is_correct"], found["wrong_ranges"]) == (1, False, 1)
    assert found["differences"][0]["element"] == 39_999
    assert len(found["seed"]) == 32
    assert complaint.startswith("gradshard: round 'r1' is not what it claims: 1 of 3 ranges recom")
    assert "rounds/r1/update.safetensors: tensor 'w', element 39999: " in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("sample", ["0", "101%", "1.5", "half", "-1%", "0%"])
def test_a_part_out_of_bounds_is_wrong_usage(
    sample: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, complaint = run(capsys, "r1", f"--sample={sample}")
    assert (code, said) == (2, "")
    assert f"'{sample}' is not " in complaint
