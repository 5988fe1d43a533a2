"""``python -m benchmarks.cost_report``: write pages and plots from the cost model.

The pages are docs/cost.md and benchmarks/published.md. A test compares them with what this writes.
"""

from pathlib import Path
from typing import Final

from benchmarks import cost_page, published_page
from benchmarks.cost_text import document

ROOT: Final = Path(__file__).parent.parent


def files() -> dict[str, str]:
    """Return the text of each file, by its path in the repository."""
    return {
        "docs/cost.md": document(*cost_page.sections()),
        "benchmarks/published.md": document(*published_page.sections()),
        "docs/cost-size.svg": cost_page.size_plot().svg(),
        "docs/cost-shards.svg": cost_page.shards_plot().svg(),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(ROOT / name)
