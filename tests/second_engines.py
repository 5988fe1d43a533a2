"""The tests that another engine than ours cannot pass."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest


def mark_gaps(
    items: list[pytest.Item],
    folder: Path,
    engine: str,
    gaps: Mapping[str, str],
    hangs: Collection[str],
) -> None:
    """Expect the tests of a folder that its engine cannot pass to fail, with the reason.

    ``gaps`` has the reasons by test. ``hangs`` names those in which the engine lets a sender wait
    for ever.
    """
    for item in items:
        if not item.path.is_relative_to(folder):
            continue
        if gap := gaps.get(item.name):
            item.add_marker(pytest.mark.xfail(reason=gap, strict=True))
        if item.name.partition("[")[0] in hangs:
            item.add_marker(pytest.mark.skip(reason=f"{engine} lets the sender wait for ever"))
