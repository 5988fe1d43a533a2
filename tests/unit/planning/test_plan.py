"""A plan: its tasks, and its way through JSON."""

import json
from dataclasses import replace

from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout, Runs
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan, plan_to_json
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    LayerRanges,
    Level,
    Participants,
    PlannedLayerWeights,
    PlannedLayout,
    Rejection,
    Stage,
)

LAYOUT = PlannedLayout.of(Layout.pack([("w", "F32", (4,)), ("n", "I64", (2,))]))


def make_plan(contributors: int, levels: tuple[Level, ...], shards: int = 1) -> Plan:
    source = ObjectVersion("key", "version", "etag", 32)
    ids = [f"c{number}" for number in range(contributors)]
    everybody = tuple(Contributor(name, source, 1, 0.5, Runs([0, 32, 80])) for name in ids)
    return Plan("r", Participants(everybody), Computation(levels, shards), LAYOUT)


def test_plan_is_the_same_after_writing_and_reading_json() -> None:
    plan = make_plan(2, (Level(((0, 1), (1, 2)), (2,)), Level(((0, 2),))), shards=2)
    plan = replace(
        plan,
        participants=replace(plan.participants, rejected=(Rejection("c2", "NaN"),), missing=("d",)),
        computation=replace(
            plan.computation, layers=(PlannedLayerWeights(0.25, (0.5, None)),), rule="salf"
        ),
        layout=replace(LAYOUT, layers=(LayerRanges("w", ((0, 16),)),), buffers=((16, 32),)),
        stage=Stage("2026-01-01T00:00:00Z", 2, (1,), (3,)),
        notes=("a note",),
    )
    assert parse_plan(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_each_shard_has_a_task_for_each_group() -> None:
    plan = make_plan(3, (Level.of_sizes([2, 1]), Level.of_sizes([2])), shards=2)
    assert [(t.number, t.start, t.end, t.first, t.stop) for t in plan.tasks(0)] == [
        (0, 0, 16, 0, 2),
        (1, 0, 16, 2, 3),
        (2, 16, 32, 0, 2),
        (3, 16, 32, 2, 3),
    ]
    assert [(t.number, t.first, t.stop) for t in plan.tasks(1)] == [(0, 0, 2), (1, 2, 4)]
    assert plan.groups_behind(plan.tasks(1)[1]) == [(0, 2), (2, 3)]


def test_higher_levels_wait_for_the_last_stage() -> None:
    plan = make_plan(3, (Level.of_sizes([2, 1]), Level.of_sizes([2])))
    first = replace(plan, stage=Stage(groups=(0,), awaited=(1,)))
    assert [[task.number for task in level] for level in first.next_tasks()] == [[0]]
    last = replace(plan, stage=Stage(number=2, groups=(1,)))
    assert [[task.number for task in level] for level in last.next_tasks()] == [[1], [0]]
    assert [[task.number for task in level] for level in plan.next_tasks()] == [[0, 1], [0]]


def test_empty_group_has_no_task_and_is_no_input() -> None:
    plan = make_plan(2, (Level.of_sizes([2, 0]), Level.of_sizes([2])))
    assert [task.number for task in plan.tasks(0)] == [0]
    assert plan.inputs(plan.tasks(1)[0]) == [0]
