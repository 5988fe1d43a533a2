"""The tests that the second engine is known to fail are there, under the names that say so."""

import re
from pathlib import Path

from tests.localstack.gaps import GAPS, HANGS

TESTS = Path(__file__).parents[1]


def test_every_named_test_exists() -> None:
    folders = ("e2e", "integration", "second")
    texts = [file.read_text() for folder in folders for file in (TESTS / folder).glob("*.py")]
    there = {name for text in texts for name in re.findall(r"def (test_\w+)\(", text)}
    named = {name.partition("[")[0] for name in {*GAPS, *HANGS}}
    assert named - there == set()
