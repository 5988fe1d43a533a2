"""What rounds cost, against the published numbers and by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import cost_report

from gradshard.cli import main
from gradshard.cli.plan import DEFAULT_ARCHITECTURE
from gradshard.papers import (
    SYSTEMS,
    claims,
    gradshard_systems,
    published_figures,
    published_systems,
)
from gradshard.papers.estimate import PUBLISHED, Setting
from gradshard.papers.published_figures import MEASUREMENTS, VGG16, Measurement
from gradshard_core.costs import memory_projection
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB, LambdaConfig
from gradshard_core.costs.round_projection import project
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.planning import shard_count
from gradshard_core.units import MIB

GRADS_SHARDING_VGG16 = next(m for m in MEASUREMENTS if m.model is VGG16)


def name(measurement: Measurement) -> str:
    return f"{measurement.model.name} {measurement.system}"


@pytest.mark.parametrize("cell", MEASUREMENTS, ids=name)
def test_published_dollars_follow_from_published_seconds(cell: Measurement) -> None:
    bill = published_systems.measured_bill(cell)
    assert 1000 * bill.aggregators == pytest.approx(cell.aggregators_dollars, rel=0.01)
    assert 1000 * bill.full == pytest.approx(cell.full_dollars, rel=0.01)


@pytest.mark.parametrize("cell", MEASUREMENTS, ids=name)
def test_published_dollars_follow_from_the_model(cell: Measurement) -> None:
    estimate = published_systems.modelled(cell)
    assert 1000 * estimate.bill.aggregators == pytest.approx(cell.aggregators_dollars, rel=0.25)
    assert 1000 * estimate.bill.full == pytest.approx(cell.full_dollars, rel=0.25)
    # The model has no slowest function to wait for.
    mean = sum(level.mean_seconds for level in cell.levels)
    assert estimate.seconds == pytest.approx(mean, rel=0.25)
    assert estimate.seconds == pytest.approx(cell.wall_seconds, rel=0.3)
    assert estimate.shards == (cell.model.shards if cell.system == "gradssharding" else 1)
    if cell.model is not published_figures.RESNET18:
        assert estimate.memory_mb == cell.memory_mb


def test_a_published_bill_by_hand() -> None:
    bill = published_systems.measured_bill(GRADS_SHARDING_VGG16)
    assert bill.lambda_ == pytest.approx(4 * 61.275 * 835 / 1024 * 0.0000166667)
    assert bill.s3_aggregators == pytest.approx(80 * 0.4e-6 + 4 * 5e-6)
    assert bill.s3_clients == pytest.approx(80 * 5e-6 + 80 * 0.4e-6)


def test_a_streaming_task_by_hand() -> None:
    setting = Setting(bandwidth=Bandwidth("10 MB/s", 10e6, latency_seconds=0.1), memory_mb=1769)
    assert setting.aggregator().task_seconds(1e9) == pytest.approx(0.2 + 0.1 + 100)
    # A fourteenth of a processor takes 14 times as long.
    fast = replace(setting, bandwidth=Bandwidth("1 TB/s", 1e12), memory_mb=128)
    assert fast.aggregator().task_seconds(1e9) == pytest.approx(0.2 + 1.2 * 1769 / 128)


def test_a_task_that_holds_whole_inputs_by_hand() -> None:
    aggregator = LambdaConfig(1769, "arm64", Bandwidth("10 MB/s", 10e6, latency_seconds=0.1))
    # Three requests, one after another, then the result in a fourth.
    seconds = published_systems.task_seconds(aggregator, 3, 1e8, 2e8)
    assert seconds == pytest.approx(0.2 + 4 * 0.1 + 30 + 20)


def test_memory_of_whole_inputs_follows_the_published_rule() -> None:
    # ⌈3 · 512.3 + 450⌉: the paper's VGG-16.
    assert published_systems.memory_mb(4 * 134_301_514) == 1987
    assert published_systems.memory_mb(490 * MIB) == 1920


def test_a_burst_comes_first_and_is_faster() -> None:
    # 300 MiB at 1 GiB/s, the rest at 75 MiB/s.
    assert BURST.seconds(100 * MIB) == pytest.approx(100 / 1024)
    assert BURST.seconds(1050 * MIB) == pytest.approx(300 / 1024 + 10)
    twice = BURST.scaled(2)
    assert twice.seconds(1050 * MIB) == pytest.approx(150 / 1024 + 5)
    assert (twice.name, BURST.scaled(1).name) == ("burst +100%", "burst")


def test_a_tree_by_hand() -> None:
    setting = Setting(
        4, Bandwidth("64 MiB/s", 64 * MIB, latency_seconds=0.5), architecture="x86_64"
    )
    estimate = SYSTEMS["lambda_fl"](128 * MIB, setting)
    leaf = root = 0.2 + 3 * 0.5 + 2 * 2 + 2  # two leaves of two clients, a root of two sums
    assert estimate.memory_mb == 3 * 128 + 450
    assert estimate.tasks == 3
    assert estimate.seconds == pytest.approx(leaf + root + 1.5 + 0.3)
    assert estimate.gb_seconds == pytest.approx((2 * leaf + root) * 834 / 1024)
    assert (estimate.gets, estimate.puts) == (4 + 2, 2 + 1)
    # Three tasks, four arrivals, the result's, open, plan, and finalize after each level.
    assert estimate.bill.requests == pytest.approx((3 + 4 + 1 + 4) * 0.2e-6)
    # An execution for each level: the leaves share one.
    assert estimate.bill.step_functions == pytest.approx(
        (3 + 2 * 2 + 2) * 0.025e-3 + 2 * 1e-6 + (leaf + root) * 64 / 1024 * 0.00001667
    )
    assert estimate.bill.s3_clients == pytest.approx(4 * (5e-6 + 0.4e-6))
    small = (4 * 256 + 256 + 472 + 256) / 1024 * 0.3
    # Three arrivals look for one client each, and the last one for all four.
    arrivals = (4 * 3 + 3 + 4) * 0.4e-6
    # Opening, planning two levels, finalizing with its partial sums; and a read of each task's
    # report.
    rest = (2 + 4 + 3) * 5e-6 + (3 + 3 + 2 + 1 + 3) * 0.4e-6
    assert estimate.bill.round_ == pytest.approx(small * 0.0000166667 + arrivals + rest)


def test_a_streamed_tree_by_hand() -> None:
    setting = Setting(4, Bandwidth("1 MiB/s", MIB))
    estimate = SYSTEMS["lambda_fl_streamed"](160 * MIB, setting)
    assert (estimate.tasks, estimate.memory_mb) == (3, setting.memory_mb)
    assert estimate.seconds == pytest.approx(2 * (0.2 + 320) + 1.5 + 0.3)
    # Six inputs, and three plans with the header; a sum and a report each.
    assert (estimate.gets, estimate.puts) == (6 + 3, 3 * 2)


@pytest.mark.parametrize("nbytes", [10**6, 43_000_000, VGG16.nbytes, 3 * 10**9])
@pytest.mark.parametrize("memory_mb", [128, 512])
def test_shards_are_the_planners(nbytes: int, memory_mb: int) -> None:
    plan_bytes = memory_projection.plan_bytes(20)
    choice, _ = shard_count.choose(
        Workload(nbytes, ((20,),), plan_bytes=plan_bytes), LambdaConfig(memory_mb, "arm64")
    )
    estimate = gradshard_systems.shards(nbytes, Setting(memory_mb=memory_mb))
    assert (estimate.shards, estimate.tasks) == (choice.shards, choice.tasks)
    assert (estimate.seconds, estimate.task_seconds) == (choice.seconds, choice.task_seconds)
    assert (estimate.gb_seconds, estimate.bill) == (choice.gb_seconds, choice.bill)


def test_shards_of_more_clients_than_a_task_holds_are_a_grid() -> None:
    estimate = gradshard_systems.shards(5 * 10**9, Setting(clients=200))
    # Four groups of fifty, and one task over their sums, for each shard.
    assert estimate.tasks == 5 * estimate.shards
    assert estimate.gets == estimate.shards * (200 + 4) + estimate.tasks


def test_a_given_m_is_taken() -> None:
    assert gradshard_systems.shards(VGG16.nbytes, Setting(shards=7)).shards == 7
    # Beyond what S3 takes it is the largest that it does: 512 MiB of parts of 5 MiB.
    assert gradshard_systems.shards(VGG16.nbytes, Setting(shards=5000)).shards == 102


def test_the_default_memory_is_that_of_the_template() -> None:
    assert claims.DEFAULT.setting == Setting()
    assert (Setting().memory_mb, Setting().architecture) == (
        DEFAULT_MEMORY_MB,
        DEFAULT_ARCHITECTURE,
    )
    for variant in claims.VARIANTS:
        assert variant.label.startswith(f"{variant.setting.memory_mb} MB")


def test_rejects_updates_that_no_function_holds_with_the_numbers() -> None:
    with pytest.raises(
        PlanError, match=r"λ-FL holds inputs of 4000 MB and needs 12450 MB .* 10240"
    ):
        SYSTEMS["lambda_fl"](4000 * MIB, Setting())
    with pytest.raises(PlanError, match=r"would take \d+ s, over Lambda's 900"):
        SYSTEMS["lambda_fl"](3000 * MIB, Setting(bandwidth=PUBLISHED.scaled(0.3)))
    with pytest.raises(PlanError, match=r"no M aggregates within 0\.1 s"):
        SYSTEMS["shards"](10**9, Setting(time_budget=0.1))


@pytest.mark.parametrize(
    ("nbytes", "puts", "gets"),
    [(10 * MIB, 1, 1), (40 * MIB, 1, 1), (160 * MIB, 1, 3), (2000 * MIB, 8 + 3, 4)],
)
def test_clients_pay_for_the_requests_that_they_make(nbytes: int, puts: int, gets: int) -> None:
    clients = {
        system: foresee(nbytes, Setting(10, PUBLISHED, shards=8)).bill.s3_clients
        for system, foresee in SYSTEMS.items()
    }
    for system in ("shards", "lambda_fl_streamed", "lifl_streamed"):
        assert clients[system] == pytest.approx(10 * (puts * 5e-6 + gets * 0.4e-6))
    for system in ("lambda_fl", "lifl"):
        assert clients[system] == pytest.approx(10 * (5e-6 + 0.4e-6))
    assert clients["gradssharding"] == pytest.approx(10 * 8 * (5e-6 + 0.4e-6))


def test_a_crossover_is_where_the_dollars_are_equal() -> None:
    setting = Setting(bandwidth=PUBLISHED, architecture="x86_64")
    result = claims.compare("gradssharding", "lambda_fl", setting, "full")
    (crossover,) = result.crossovers
    assert (result.cheaper_first, crossover.cheaper_above) == ("lambda_fl", "gradssharding")
    at = [SYSTEMS[s](crossover.nbytes, setting).bill.full for s in ("gradssharding", "lambda_fl")]
    assert at[0] == pytest.approx(at[1], rel=0.02)
    # What makes sharding dear when it is small are the clients' requests.
    terms = dict(claims.deciding(crossover, "full"))
    assert terms["s3_clients"] > 0 > terms["lambda"]
    # By the published cells themselves.
    assert claims.published_crossover() == pytest.approx(68e6, rel=0.01)
    with pytest.raises(PlanError, match="no size"):
        claims.compare("shards", "lambda_fl", setting, "full", smallest=5 * 10**9)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("rival", claims.RIVALS)
def test_no_crossover_is_the_worst_ratio(rival: str, alike: bool) -> None:
    verdict = claims.no_crossover(rival, PUBLISHED, "full", alike=alike)
    setting = Setting(bandwidth=PUBLISHED, architecture="x86_64")
    ratios = []
    for nbytes in (43_000_000, VGG16.nbytes, 10**9, 3 * 10**9):
        ours, theirs = (SYSTEMS[s](nbytes, setting).bill for s in ("shards", rival))
        clients = ours.s3_clients if alike else theirs.s3_clients
        ratios.append(ours.full / (theirs.aggregators + clients))
    assert max(ratios) <= verdict.value + 0.01
    assert ratios[0] <= verdict.value
    assert verdict.holds == (verdict.value <= 1)


def test_where_there_is_no_crossover_the_claim_holds() -> None:
    for rival in claims.RIVALS:
        compared = claims.compare(
            "shards",
            rival,
            Setting(bandwidth=PUBLISHED, architecture="x86_64"),
            "total",
            smallest=claims.FROM_BYTES,
            alike=True,
        )
        never_dearer = compared.cheaper_first == "shards" and not compared.crossovers
        assert claims.no_crossover(rival, PUBLISHED, "total").holds == never_dearer


@pytest.mark.parametrize("claim", claims.ROUND_CLAIMS, ids=lambda claim: claim.model.name)
def test_claims_of_a_whole_round_count_the_planners_whole_bill(claim: claims.RoundClaim) -> None:
    cell = published_figures.measured(claim.model, claim.rival)
    assert cell is not None
    for variant in (claims.DEFAULT, claims.SMALLEST, claims.DOUBLE):
        verdict = claim.verdict(variant, BURST)
        choice, _ = shard_count.choose(
            Workload(claim.model.nbytes, ((20,),)), LambdaConfig(variant.setting.memory_mb, "arm64")
        )
        assert verdict.value == pytest.approx(choice.total_dollars)
        assert verdict.bound == pytest.approx(cell.full_dollars / 1000 / claim.fraction)
        assert verdict.holds == (choice.total_dollars <= verdict.bound)
        as_paper = claim.verdict(replace(variant, one_request=True), BURST)
        saved = choice.bill.s3_clients - 20 * (5e-6 + 0.4e-6)
        assert verdict.value - as_paper.value == pytest.approx(saved)


def test_a_claim_does_not_hold_where_nothing_fits() -> None:
    slow = Bandwidth("a byte a second", 1.0)
    assert not claims.ROUND_CLAIMS[0].verdict(claims.DEFAULT, slow).holds


def test_fan_outs_by_hand() -> None:
    ways = claims.fan_outs(10.0, (1, 41))
    each = 1e-6 + 10 * 64 / 1024 * 0.00001667
    assert [way.dollars for way in ways] == [
        pytest.approx((2 * 0.025e-3, 82 * 0.025e-3)),
        pytest.approx((0.025e-3 + each, 41 * (0.025e-3 + each))),
        pytest.approx((0.025e-3, 41 * 0.025e-3)),
        pytest.approx((0.025e-3 + each, 2 * (0.025e-3 + each))),
    ]


def test_the_fan_out_as_deployed_is_the_one_that_is_priced() -> None:
    load = Workload(VGG16.nbytes, ((20,),))
    together, alone = (
        project(load, 50, LambdaConfig(128, "arm64", concurrency=concurrency))
        for concurrency in (0, 1)
    )
    ways = [way.dollars[0] for way in claims.fan_outs(together.task_seconds, (50,))]
    saved = ways[claims.EXPRESS_EACH] - ways[claims.AS_DEPLOYED]
    assert alone.total_dollars - together.total_dollars == pytest.approx(saved)


def test_a_budget_is_kept_at_the_least_price() -> None:
    dollars = []
    for budget in claims.budgets(VGG16, BURST):
        assert budget.choice is not None
        assert budget.choice.seconds <= budget.time_budget
        dollars.append(budget.choice.bill.total)
    assert dollars == sorted(dollars)


@pytest.mark.slow
def test_the_document_is_what_the_command_writes() -> None:
    for file, text in cost_report.files().items():
        path: Path = cost_report.ROOT / file
        assert path.read_text(encoding="utf-8") == text, "run: python -m benchmarks.cost_report"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["papers", "cost", *map(str, arguments)], prog_name="gradshard")
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_command_puts_the_systems_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--size", "512MiB", "--clients", 20, "--json")
    document: dict[str, Any] = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["system"] for row in document["systems"]] == list(SYSTEMS)
    expected = gradshard_systems.shards(512 * MIB, Setting())
    assert document["systems"][0] == expected.to_json()
    code, out, _ = run(capsys, "--size", "5GB", "--bandwidth", 60)
    assert code == 0
    assert "over Lambda's 10240" in out
    assert "60 MB/s" in out


def test_command_says_that_many_clients_shards_are_a_grid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    note = "beyond 64 clients gradshard's shards are those of a grid"
    assert note in run(capsys, "--size", "1GB", "--clients", 65)[1]
    assert note not in run(capsys, "--size", "1GB", "--clients", 64)[1]
    assert run(capsys, "--size", "50GB", "--clients", 4096, "--system", "shards")[0] == 0


def test_command_reproduces_the_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--published", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == len(MEASUREMENTS)
    assert rows[0]["from_published_seconds"]["agg"] == pytest.approx(0.2625, rel=0.01)
    assert run(capsys, "--published")[0] == 0


def test_command_finds_crossovers(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--crossover", "gradssharding", "lambda_fl", "--bandwidth", "published")
    code, out, _ = run(capsys, *arguments, "--json")
    full, total = json.loads(out)
    assert (code, full["column"], total["column"]) == (0, "full", "total")
    assert full["crossovers"][0]["cheaper_above"] == "gradssharding"
    _, out, _ = run(capsys, *arguments)
    assert "GradsSharding is; GradsSharding less λ-FL, $ per 1000: " in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Give one of --size, --published and --crossover. See"),
        (["--size", "1GB", "--published"], "Give one of"),
        (["--size", "big"], "'big' is not a size"),
        (["--size", "1GB", "--clients", 0], "--clients"),
        (["--size", "1GB", "--bandwidth", "fast"], "'fast' is not 'published', 'burst'"),
        (["--size", "1GB", "--bandwidth", "nan"], "'nan' is not 'published', 'burst'"),
        (["--size", "1GB", "--memory", 64], "--memory"),
        (["--size", "1GB", "--shards", 2, "--time-budget", 9], "--shards or --time-budget"),
        (["--size", "5GB", "--system", "lifl"], "needs 14756 MB a function, over Lambda's 10240"),
        (
            ["--size", "1TB", "--shards", 1, "--system", "shards"],
            "an update of 1000000000000 bytes takes at least 187 shards",
        ),
        (["--size", "1GB", "--clients", 4097], "4097"),
        (["--crossover", "shards", "shards"], "two different systems"),
        (["--crossover", "shards", "tree"], "'tree' is not one of"),
    ],
)
def test_command_rejects_in_one_line(
    arguments: list[object], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    # Errors of usage name the help.
    expected = 2 if err.endswith("--help`.\n") else 1
    assert (code, out, err.count("\n")) == (expected, "", 1)
    assert text in err


def test_no_hurry_is_never_dearer() -> None:
    setting = Setting(memory_mb=128)
    patient = gradshard_systems.shards(VGG16.nbytes, replace(setting, time_budget=math.inf))
    assert patient.bill.total <= gradshard_systems.shards(VGG16.nbytes, setting).bill.total
