"""Shared code of examples/salf.py and examples/amble.py: clients of different speed.

The digits and the network are those of examples/digits, whose programs import them by plain names;
so they are imported here.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))

import data
import network

__all__ = ["data", "network"]
