"""``gradshard papers cost``."""

import json

import pytest

from tests.unit.cli.commands import Run, assert_one_line


def test_cost_at_given_prices(run: Run) -> None:
    def dollars(*options: object) -> dict[str, float]:
        asked = (
            "papers",
            "cost",
            "--size",
            "512MB",
            "--system",
            "shards",
            "--shards",
            4,
            "--json",
            *options,
        )
        [system] = json.loads(run(*asked).stdout)["systems"]
        bill: dict[str, float] = system["bill"]
        return bill

    usual = dollars()
    dear = dollars("--price", "put_per_1000=0.01", "--price", "transitions_per_1000=0")
    # Four tasks write a part and a report each; PUTs cost twice the usual $0.005.
    assert dear["s3_aggregators"] - usual["s3_aggregators"] == pytest.approx(8 * 5e-6)
    # Three states, two of a level and an execution at $0.025 a thousand less.
    assert usual["step_functions"] - dear["step_functions"] == pytest.approx(6 * 25e-6)
    assert dear["lambda"] == usual["lambda"]


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("put_per_1000=cheap", "'cheap' of 'put_per_1000=cheap' is not a number of dollars"),
        ("put_per_1000=-1", "is not a number of dollars"),
        ("put_per_1000=inf", "is not a number of dollars"),
        ("beer=1", "'beer=1' names no price; there are gb_second_x86_64"),
    ],
)
def test_prices_that_are_none(run: Run, price: str, text: str) -> None:
    assert_one_line(run("papers", "cost", "--size", "1GB", "--price", price), text)
