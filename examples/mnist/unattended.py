"""Run the training of mnist.py by itself, killing functions and clients on the way: see README.md.

An engine is started on a free port. Clients run in a few processes, of which one is killed and
started again from time to time, as are the engine's functions. It prints a JSON document.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from gradshard import Federation
from gradshard.client.training import Training
from gradshard.local_engine import lifecycle
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.records.training_state import PAUSED, RUNNING
from mnist import TRAINING

PROGRAM: Final = Path(__file__).with_name("mnist.py")


class Clients:
    """The processes of the clients.

    Parameters
    ----------
    python, arguments
        The interpreter, and what each gets besides the numbers of its clients.
    clients, processes
        Their numbers.
    """

    def __init__(self, python: str, arguments: list[str], clients: int, processes: int) -> None:
        self._python, self._arguments = python, arguments
        cuts = [clients * n // processes for n in range(processes + 1)]
        self._ranges = list(itertools.pairwise(cuts))
        self._running = [self._start(*numbers) for numbers in self._ranges]

    def _start(self, first: int, end: int) -> subprocess.Popen[bytes]:
        numbers = ["clients", "--from", str(first), "--to", str(end)]
        command = [self._python, str(PROGRAM), *self._arguments, *numbers]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - the example

    def kill(self, number: int) -> None:
        """Kill one process and start its clients again."""
        self._running[number].kill()
        self._running[number].wait()
        self._running[number] = self._start(*self._ranges[number])

    def wait(self) -> list[int]:
        """Wait until all have ended, and return their codes."""
        return [process.wait(120) for process in self._running]

    def end(self) -> None:
        """End those that run."""
        for process in self._running:
            process.kill()


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started; its threads come and go meanwhile."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def kill_function(engine: Engine, killed: Counter[str], rng: random.Random) -> None:
    """Kill a process that runs a function, of the kind that was killed least often."""
    found: dict[int, str] = {}
    for pid in children_of(engine.pid or 0):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
            name = re.search("AWS_LAMBDA_FUNCTION_NAME=gradshard-([A-Za-z]+)Function", environment)
            if name:
                found[pid] = name[1]
    if found:
        least = min(killed[name] for name in found.values())
        victim = rng.choice(sorted(pid for pid, name in found.items() if killed[name] == least))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed[found[victim]] += 1


def attend(training: Training, engine: Engine, clients: Clients, options: Any) -> dict[str, Any]:
    """Kill functions and clients until the training has ended; resume it if it has paused."""
    rng = random.Random(options.seed)  # noqa: S311 - not a secret
    killed: Counter[str] = Counter()
    restarted = resumed = 0
    now = time.monotonic()
    next_function, next_client = now + options.function_every, now + options.client_every
    while (state := training.state()).status in {RUNNING, PAUSED}:
        time.sleep(0.5)
        if state.status == PAUSED:
            print(f"resumed: {state.cause}", file=sys.stderr)
            training.resume()
            resumed += 1
        if time.monotonic() >= next_function:
            kill_function(engine, killed, rng)
            next_function += options.function_every
        if time.monotonic() >= next_client:
            clients.kill(rng.randrange(options.processes))
            restarted += 1
            next_client += options.client_every
    return {
        "functions_killed": dict(killed),
        "client_processes_killed": restarted,
        "resumed": resumed,
    }


def figures(training: Training) -> dict[str, Any]:
    """Return what became of a training."""
    status = training.status()
    evaluated = [r for r in status["rounds"] if r["is_evaluation"] and r["is_completed"]]
    return {
        "cause": status["cause"],
        "rounds": status["completed"],
        "failed_rounds": sum(not r["is_completed"] for r in status["rounds"]),
        "accuracy": {r["number"]: round(r["metrics"]["accuracy"], 4) for r in evaluated},
        "best": status["best"],
        "dollars": round(status["dollars"], 5),
        "clients": len({c for r in status["rounds"] for c in r["contributors"]}),
        "members": len(training.members()),
    }


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="softmax")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--sample", type=int, default=10)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--function-every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--client-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="of the clients")
    parser.add_argument("--report", type=Path, help="write the training's status here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        engine = lifecycle.up(0, owner=os.getpid())
        try:
            common = ["--port", str(engine.port), "--model", options.model]
            common += ["--clients", str(options.clients)]
            rates = ["--epochs", str(options.epochs), "--learning-rate", str(options.learning_rate)]
            start = ["start", "--rounds", str(options.rounds), "--sample", str(options.sample)]
            start += ["--over-selection", "0.3", "--target", "1", "--patience", "99"]
            command = [
                options.python,
                str(PROGRAM),
                *common,
                *start,
                *rates,
                "--poll-interval",
                "2",
            ]
            subprocess.run(command, check=True)  # noqa: S603 - the example
            training = Federation(local=True, port=engine.port).training(TRAINING)
            clients = Clients(options.python, common, options.clients, options.processes)
            began = time.monotonic()
            try:
                faults = attend(training, engine, clients, options)
                seconds = round(time.monotonic() - began)
                codes = clients.wait()
            finally:
                clients.end()
            if options.report:
                options.report.write_text(json.dumps(training.status()))
            found = {"model": options.model, **figures(training), **faults}
            print(json.dumps({**found, "seconds": seconds, "codes": codes}, indent=2))
        finally:
            lifecycle.down(engine.port, delete=True)


if __name__ == "__main__":
    main()
