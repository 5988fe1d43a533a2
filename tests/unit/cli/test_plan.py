"""``gradshard plan``."""

import json
import time
from typing import Any

import pytest

from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB
from tests.unit.cli.commands import Run, assert_one_line


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        ("512MB", 512_000_000),
        ("1GiB", 2**30),
        ("43.5MB", 43_500_000),
        ("5e9", 5 * 10**9),
        ("7 kib", 7168),
        ("100B", 100),
    ],
)
def test_plan_reads_sizes(run: Run, size: str, nbytes: int) -> None:
    result = run("plan", "--size", size, "--clients", 2, "--json")
    assert json.loads(result.stdout)["nbytes"] == nbytes


@pytest.mark.parametrize("size", ["", "MB", "1XB", "-1MB", "0", "1iB", "1e999", "nan"])
def test_plan_rejects_other_sizes(run: Run, size: str) -> None:
    assert_one_line(run("plan", "--size", size, "--clients", 2), "'--size'")


@pytest.mark.parametrize("size", ["512", " 1000 "])
def test_a_size_without_a_unit_is_asked_for_one(run: Run, size: str) -> None:
    number = size.strip()
    told = f"{size!r} has no unit: write {number}MB, {number}MiB or {number}B"
    assert_one_line(run("plan", "--size", size, "--clients", 2), told)
    assert_one_line(run("papers", "cost", "--size", size), told)


@pytest.mark.parametrize("size", ["1MB", "512MB", "5GB"])
@pytest.mark.parametrize(
    "options", [[], ["--time-budget", 30], ["--shards", 1], ["--memory", 1024]]
)
def test_plan_leads_with_its_answer_and_shows_five_rows(
    run: Run, size: str, options: list[Any]
) -> None:
    result = run("plan", "--size", size, "--clients", 20, *options)
    if size == "5GB" and "--shards" in options:
        assert result.exit_code == 1
        return
    assert "at " in result.stdout.splitlines()[0]
    assert "the planner takes M=" in " ".join(result.stdout.split())
    rows = [line for line in result.stdout.splitlines() if line.count("│") > 2]
    assert len(rows) <= 5
    assert result.stdout.count("→") == 1
    everything = run("plan", "--size", size, "--clients", 20, *options, "--all").stdout
    all_rows = [line for line in everything.splitlines() if line.count("│") > 2]
    assert set(rows) <= set(all_rows)
    if len(all_rows) > 5:
        assert (rows[0], rows[-1]) == (all_rows[0], all_rows[-1])
        assert f"{len(all_rows) - len(rows)} more with --all" in result.stdout
    else:
        assert "--all" not in result.stdout


def test_the_default_memory_is_where_more_buys_no_time(run: Run) -> None:
    """The template's: at the price of the smallest function, in a quarter less time, M alike."""
    asked = ("plan", "--size", "512MB", "--clients", 20, "--shards", 3, "--json")
    plans = {
        memory: json.loads(run(*asked, "--memory", memory).stdout)["choice"]
        for memory in (128, DEFAULT_MEMORY_MB, 256)
    }
    smallest, default, larger = plans.values()
    assert default["dollars"]["total"] <= 1.01 * smallest["dollars"]["total"]
    assert default["seconds"] <= 0.75 * smallest["seconds"]
    assert larger["dollars"]["total"] > 1.05 * default["dollars"]["total"]
    assert larger["seconds"] >= 0.99 * default["seconds"]


def test_plan_leaves_out_rows_that_hardly_differ(run: Run) -> None:
    arguments = ("plan", "--size", "5GB", "--clients", 20)
    frontier = json.loads(run(*arguments, "--json").stdout)["frontier"]
    shown = run(*arguments, "--all").stdout.splitlines()
    rows = [line for line in shown if line.count("│") > 2]
    assert 5 < len(rows) < len(frontier) / 2


def test_plan_of_given_shards(run: Run) -> None:
    document = json.loads(
        run("plan", "--size", "512MB", "--clients", 20, "--shards", 4, "--json").stdout
    )
    assert document["choice"]["shards"] == 4
    assert {projection["shards"] for projection in document["frontier"]} == {4}
    dollars = document["choice"]["dollars"]
    assert dollars["total"] == pytest.approx(
        dollars["full"]
        + sum(dollars[part] for part in ("requests", "step_functions", "round", "events", "starts"))
    )


def test_plan_for_the_deployed_functions(run: Run) -> None:
    document = json.loads(
        run("plan", "--size", "1GB", "--clients", 2, "--stack", "mine", "--json").stdout
    )
    assert document["choice"]["memory_mb"] == 512
    assert document["architecture"] == "x86_64"


def test_plan_of_more_clients_than_a_task_holds_is_a_grid(run: Run) -> None:
    result = run("plan", "--size", "5GB", "--clients", 1000, "--json")
    document = json.loads(result.stdout)
    assert document["topology"] == "grid"
    assert document["levels"] == [[63] * 15 + [55], [16]]
    assert document["choice"]["tasks"] == 17 * document["choice"]["shards"]
    assert document["choice"]["needed_mb"] <= 128


@pytest.mark.parametrize(
    ("options", "topology", "levels", "memory_mb"),
    [
        (["--topology", "lambda_fl"], "lambda_fl", [[5] * 4, [4]], 128),
        (["--topology", "lifl", "--fan-in", 5], "lifl", [[5] * 4, [4]], 128),
        (["--order", "tree:4,5"], "shards", [[20]], 128),
        (["--topology", "grid", "--order", "tree:4,5"], "grid", [[4] * 5, [5]], 128),
    ],
)
def test_plan_in_a_topology(
    run: Run, options: list[Any], topology: str, levels: list[list[int]], memory_mb: int
) -> None:
    result = run("plan", "--size", "500MB", "--clients", 20, *options, "--json")
    document = json.loads(result.stdout)
    assert (document["topology"], document["levels"]) == (topology, levels)
    assert document["choice"]["tasks"] == document["choice"]["shards"] * sum(map(len, levels))
    assert document["choice"]["needed_mb"] <= memory_mb
    assert run("plan", "--size", "500MB", "--clients", 20, *options).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("clients", [20, 1000])
@pytest.mark.parametrize("size", ["5GB", "50GB", "500GB"])
def test_plan_is_quick_for_any_size(run: Run, size: str, clients: int) -> None:
    began = time.process_time()
    assert run("plan", "--size", size, "--clients", clients).exit_code == 0
    # Thrice what it takes: enough to tell 700 M from 10,000.
    assert time.process_time() - began < 2.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--shards", 2, "--time-budget", 3], "not both"),
        (["--time-budget", 0.01], "no M aggregates within 0.01 s"),
        (["--time-budget", "nan"], "--time-budget"),
        (["--memory", 64], "--memory"),
        (["--topology", "ring"], "'ring' is not one of"),
        (["--topology", "lambda_fl", "--fan-in", 1], "fan_in is 1"),
        (["--topology", "lambda_fl", "--shards", 2], "lambda_fl adds whole updates"),
        (["--fan-in", 4], "topology shards has no groups"),
        (["--order", "tree:3,5"], "adds 20 contributors up to 2 sums, not to one: give tree:3,5,2"),
        (["--order", "tree:"], "order is 'tree:'"),
        (["--ring", "32", "--rule", "median"], "masked: leave out rule: rules look at single"),
        (["--ring", "32", "--order", "tree:4,5"], "masked: leave out order"),
    ],
)
def test_plan_rejects(run: Run, options: list[Any], text: str) -> None:
    assert_one_line(run("plan", "--size", "512MB", "--clients", 20, *options), text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "5GB", "--clients", 100_001], "100001"),
        (["--size", "6GB", "--clients", 20, "--topology", "lifl"], "at least 2 shards, since S3"),
        (
            ["--size", "500GB", "--clients", 20, "--shards", 10],
            "an update of 500000000000 bytes takes at least 94 shards",
        ),
        (["--size", "100TB", "--clients", 2], "a round takes at most 10000"),
        (["--size", "5GB", "--clients", 65, "--topology", "shards"], "over the 64 streams"),
    ],
)
def test_plan_rejects_beyond_the_limits(run: Run, arguments: list[Any], text: str) -> None:
    assert_one_line(run("plan", *arguments), text)


def test_the_keeper_of_a_masked_plan_is_priced_with_its_noise(run: Run) -> None:
    dp = '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
    asked = ("plan", "--size", "1GB", "--clients", 20, "--architecture", "x86_64")
    bits = {"32": 1, "64": 2}
    for ring, factor in bits.items():
        plain = json.loads(run(*asked, "--ring", ring, "--json").stdout)["keeper"]
        noised = json.loads(run(*asked, "--ring", ring, "--dp", dp, "--json").stdout)["keeper"]
        assert plain["streamed_bytes"] == noised["streamed_bytes"] == factor * 20e9
        assert plain["cpu_seconds"] == pytest.approx(0.3 * factor * 20)
        # Noise is drawn once for each element of the result, whatever the number of clients.
        assert noised["noise_cpu_seconds"] == pytest.approx(12.4)
        assert noised["cpu_seconds"] == pytest.approx(plain["cpu_seconds"] + 12.4)
        # 1,769 MB on x86-64, at $0.0000166667 per GB-second.
        dollars = noised["cpu_seconds"] * 1769 / 1024 * 0.0000166667
        assert noised["dollars"] == pytest.approx(dollars, rel=1e-5)
    assert "key streams and noise in 18.4 s" in run(*asked, "--ring", "32", "--dp", dp).stdout
    assert "key streams in 6.0 s" in run(*asked, "--ring", "32").stdout


def test_plan_says_what_memory_further_layers_take(run: Run) -> None:
    rule = '{"name": "krum", "f": 1, "layer_quorum": 5}'
    result = run("plan", "--size", "512MB", "--clients", 64, "--rule", rule, "--json")
    [note] = json.loads(result.stdout)["notes"]
    assert "each further one takes up to 2.04 MB of a task" in note
    plain = '{"name": "krum", "f": 1}'
    result = run("plan", "--size", "512MB", "--clients", 64, "--rule", plain, "--json")
    assert json.loads(result.stdout)["notes"] == []
