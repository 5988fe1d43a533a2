"""The round's definition as LocalStack can run it; this is all that is altered.

=====================================  ===========================================================
on AWS                                 LocalStack 4.14
=====================================  ===========================================================
`"ExecutionType": "EXPRESS"` of a      Its grammar has `STANDARD` only: altered, one word. The
distributed map's children             states of a child run the same.
a map fails when a child has failed    The map succeeds. Nothing is altered: the machine goes on to
(no failure is tolerated)              the next level and to FinalizeRound with a round that was
                                       given up, which AWS's machine never does.
=====================================  ===========================================================
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "statemachine" / "round.asl.json").read_text()
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
EXPRESS, STANDARD = '"ExecutionType": "EXPRESS"', '"ExecutionType": "STANDARD"'


def definition(provided: Mapping[str, str]) -> str:
    """Return the definition with what the template would substitute."""
    text = PLACEHOLDER.sub(lambda match: provided[match[1]], TEXT)
    assert text.count(EXPRESS) == 1
    text = text.replace(EXPRESS, STANDARD)
    assert json.loads(text)
    return text
