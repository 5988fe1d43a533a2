"""The options of a round, as they are declared."""

import dataclasses

from gradshard_core.specs.round_spec import DEFAULTS, OPTIONS, RoundSpec


def test_every_option_says_what_it_does_and_its_default() -> None:
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(RoundSpec)]
    for name, declared in OPTIONS.items():
        assert declared.help.endswith("."), name
        assert declared.kind.values, name
        has_value = DEFAULTS.get(name) is not None
        assert has_value + bool(declared.default) + (name == "clients") == 1, name
