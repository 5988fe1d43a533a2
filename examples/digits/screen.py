"""Output of the demo: steps with their times, rounds as they end, and a table of them all."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plain_numpy import Comparison
from training import Accuracies

WIDTH = 80

_EXPLANATION = """
  M        functions that averaged, each a byte range of the update
  read     what they read of the clients' updates; GET and PUT are their requests
  seconds  from the plan to the manifest, on this machine
  peak MB  the most memory one of them had
  $        what AWS would charge, projected: {memory_mb} MB a function, clients' requests included

  On AWS the ResNet-18 round is projected to take {seconds:.1f} s and at most {needed_mb:.0f} MB."""


class Outcome(NamedTuple):
    """A finished round: its manifest, how its result compares, and what is wrong with either."""

    title: str
    manifest: dict[str, Any]
    comparison: Comparison
    problems: list[str]


class Steps:
    """Steps one after the other: the one under way with a spinner, a line for each one done.

    There are spinners on a terminal only, and lines only where they are ``kept``.
    """

    def __init__(self, console: Console, *, kept: bool) -> None:
        self._console = console
        self._kept = kept
        self._progress = Progress(
            TextColumn(" "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("")
        self._text = ""
        self._began = 0.0

    def begin(self, text: str) -> None:
        """Begin a step; the one before it is done."""
        self.end()
        self._text, self._began = text, time.monotonic()
        self._progress.reset(self._task, description=text)
        if self._console.is_terminal:
            self._progress.start()

    def detail(self, text: str) -> None:
        """Say what the step under way is at."""
        self._progress.update(self._task, description=f"{self._text}: {text}")

    def end(self, mark: str = "[green]✓[/green]") -> None:
        """End the step under way, if there is one."""
        if self._console.is_terminal:
            self._progress.stop()
        if self._text and self._kept:
            room = WIDTH - len("  ✓ ") - len(" 000.0 s")
            seconds = time.monotonic() - self._began
            self._console.print(f"  {mark} {escape(self._text):<{room}} {seconds:5.1f} s")
        self._text = ""


class Screen:
    """Writes to standard output; with spinners on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    def title(self, text: str) -> None:
        """Begin a chapter."""
        self._console.print(Text(f"\n{text}", "bold"))

    def say(self, text: str, style: str = "") -> None:
        """Write a paragraph."""
        self._console.print(Text(text, style))

    @contextmanager
    def steps(self, *, kept: bool = True) -> Iterator[Steps]:
        """Show steps until the block ends; the last one has failed if it ends by an error."""
        steps = Steps(self._console, kept=kept)
        try:
            yield steps
        except BaseException:
            steps.end("[red]✗[/red]")
            raise
        steps.end()

    def clients(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Show how many images of each digit every client has."""
        digits = "".join(f"{digit:>5}" for digit in range(10))
        self._console.print(f"\n  {'images of':<12}{digits}    all")
        for client, row in counts.items():
            cells = "".join(f"{count or '·':>5}" for count in row)
            self._console.print(f"  {client:<12}{cells}{sum(row):>7}")

    def round_heads(self) -> None:
        """Write the heads of the rounds' columns."""
        self._console.print(
            "\n                  each one alone\n"
            "  round  together   best   mean  averaged update, against numpy"
        )

    def round_line(
        self, number: int, accuracies: Accuracies, comparison: Comparison, seconds: float
    ) -> None:
        """Write a round's line."""
        together, best, mean = (f"{share:.1%}" for share in accuracies)
        line = Text(f"  {number:>5}  ").append(f"{together:>8}", "bold")
        line.append(f"  {best:>5}  {mean:>5}  ").append(_verdict(comparison))
        line.pad_right(WIDTH - len(line) - len(" 000.0 s"))
        self._console.print(line.append(f" {seconds:5.1f} s"))

    def comparison(self, comparison: Comparison) -> None:
        """Write how a round's result compares with the plain numpy loop's."""
        self._console.print(Text("  averaged update, against numpy: ").append(_verdict(comparison)))

    def summary(self, outcomes: Sequence[Outcome]) -> None:
        """Write the table of all rounds."""
        self.title("Summary")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("  round")
        for head in ("clients", "M", "read", "GET", "PUT", "seconds", "peak MB", "$/1,000 rounds"):
            table.add_column(head, justify="right", no_wrap=True)
        for outcome in outcomes:
            table.add_row(f"  {outcome.title}", *_figures(outcome.manifest))
        self._console.print(table)
        self.say(_EXPLANATION.format(**outcomes[-1].manifest["projected"]), style="dim")

    def problems(self, problems: Sequence[str]) -> None:
        """Write what is wrong."""
        self.say("\nSomething is off:", style="bold red")
        for problem in problems:
            self.say(f"  ✗ {problem}", style="red")

    def end(self, text: str, style: str) -> None:
        """Write how it all ended, and after how long."""
        self.say(f"\n{text} Total time: {time.monotonic() - self._started:.0f} s.", style)


def size(nbytes: float) -> str:
    """Return a number of bytes for people."""
    kib = nbytes / 1024
    return f"{kib:,.0f} KiB" if kib < 1024 else f"{kib / 1024:,.1f} MiB"


def _verdict(comparison: Comparison) -> Text:
    text = Text(f"{comparison.tensors} tensors, {comparison.nbytes:,} bytes ")
    if comparison.identical:
        return text.append("identical", "green")
    return text.append(f"({len(comparison.differing)} differ)", "bold red")


def _figures(manifest: Mapping[str, Any]) -> list[str]:
    totals = manifest["totals"]
    return [
        str(len(manifest["contributors"])),
        str(manifest["shards"]),
        size(totals["bytes_read"]),
        str(totals["gets"]),
        str(totals["puts"]),
        f"{manifest['seconds']:.1f}",
        f"{totals['peak_mb']:.0f}",
        f"{1000 * manifest['projected']['dollars']['total']:.2f}",
    ]
