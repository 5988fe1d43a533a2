"""The sizes and counts of a round."""

from collections import Counter

from gradshard_core.aggregation import topologies
from gradshard_core.costs.workload import Workload


def test_a_load_counts_its_groups() -> None:
    load = Workload(8, topologies.grid(1000))
    assert load.fan_ins == [Counter({63: 15, 55: 1}), Counter({16: 1})]
    assert (load.contributors, load.fan_in) == (1000, 63)
