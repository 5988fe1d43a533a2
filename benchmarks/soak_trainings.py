"""Two trainings left alone while clients start, stop, crash and send junk; then all is checked.

``python -m benchmarks.soak_trainings --minutes 60`` starts an engine and two trainings, one in
rounds and one buffered. It starts each client, and ends or kills it at random, as a process of its
own. If a training pauses, which it should not, the cause is kept and it is resumed. In the end it
replays every version of both models from the manifests, looks what became of every upload, and
counts the engine's processes, threads, files and memory.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load

from gradshard import Federation
from gradshard.client.training import Training
from gradshard.local_engine import lifecycle
from gradshard_core.errors import GradshardError
from gradshard_core.formats.object_keys import ROUNDS, ObjectVersion, RoundKeys, parse_update_key
from gradshard_core.records.training_state import ENDED, PAUSED, Invitation

ROUNDS_MODE: Final = "in-rounds"
BUFFERED_MODE: Final = "in-a-buffer"
CLIENTS: Final = {ROUNDS_MODE: 8, BUFFERED_MODE: 6}
FIRST: Final = {"w": np.linspace(-1, 1, 1000, dtype="f4"), "b": np.zeros(8, "f4")}
MEAN_UP_SECONDS: Final = 100.0
MEAN_DOWN_SECONDS: Final = 25.0
JUNK: Final = 0.03
"""The share of the trained versions in whose place a client uploads junk."""

Weights = Mapping[str, Any]


# ------------------------------------------------------------------------------------- one client


def take_part(federation: Federation, training: str, client: str) -> None:
    """Run a client until its training ends, or somebody kills it."""
    rng = random.Random()  # noqa: S311 - not a secret
    pace = random.Random(client).choice((0.5, 2.0, 6.0, 12.0))  # noqa: S311
    store = federation.stack.store

    def train(weights: Weights, invitation: Invitation) -> Any:
        time.sleep(rng.expovariate(1 / pace))
        if rng.random() < JUNK:
            is_buffered = training == BUFFERED_MODE
            held = federation.training(training).keys
            keys = held.inbox(invitation.version) if is_buffered else None
            keys = keys or RoundKeys(invitation.round_id)
            store.put_bytes(keys.update(client), b"junk")
        drawn = np.random.default_rng([invitation.number, *client.encode()])
        trained = {
            name: (0.9 * tensor + drawn.normal(size=tensor.shape)).astype("f4")
            for name, tensor in weights.items()
        }
        return trained, 10 + len(client), {"loss": 1 / invitation.number}

    def evaluate(weights: Weights, _invitation: Invitation) -> Any:
        return {"norm": float(np.abs(weights["w"]).sum())}, 7

    done = federation.participate(client, train, evaluate, training=training)
    print(f"{client}: {len(done.trained)} trained, {len(done.rejected)} rejected", flush=True)


# ------------------------------------------------------------------------------------ the driver


class Client:
    """A client that is started, stopped, killed and let go at random."""

    def __init__(self, training: str, name: str, port: int, rng: random.Random) -> None:
        self._training, self._name, self._port, self._rng = training, name, port, rng
        self._process: subprocess.Popen[bytes] | None = None
        self._until = 0.0
        self.counts: Counter[str] = Counter()

    def look(self, federation: Federation, log: Any) -> None:
        """Start the process, or end it, if its time is over."""
        if self._process is not None and self._process.poll() is not None:
            self.counts[f"ended with {self._process.returncode}"] += 1
            self._process, self._until = None, 0.0
        if time.monotonic() < self._until:
            return
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.soak_trainings", "--client", self._name]
            command += ["--training", self._training, "--port", str(self._port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
            self._until = time.monotonic() + self._rng.expovariate(1 / MEAN_UP_SECONDS)
            self.counts["started"] += 1
            return
        how = self._rng.choice(("killed", "killed", "stopped", "left"))
        self.end(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        if how == "left":
            federation.training(self._training).leave(self._name)
        self.counts[how] += 1
        self._until = time.monotonic() + self._rng.expovariate(1 / MEAN_DOWN_SECONDS)

    def end(self, how: int = signal.SIGKILL) -> None:
        """End the process, if one runs."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def wait(self) -> None:
        """Wait until the client has seen the end of its training."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(120)


def start(federation: Federation, seconds: float) -> dict[str, Training]:
    """Start both trainings."""
    found = {}
    modes: dict[str, dict[str, Any]] = {
        ROUNDS_MODE: {"sample": 3, "over_selection": 0.5, "min_clients": 2},
        BUFFERED_MODE: {"mode": "buffered", "updates_per_version": 3, "min_clients": 1},
    }
    for name, options in modes.items():
        federation.model(name).put(FIRST)
        found[name] = federation.train(
            name,
            rounds=99_999,
            server_optimizer={"optimizer": "fedavg", "model": name},
            evaluate_every=5,
            budget={"seconds": seconds},
            repeats=20,
            repeat_after=1,
            timeout=300,
            poll_interval=2,
            **options,
        )
    return found


def measure(pid: int) -> dict[str, float]:
    """Return an engine's memory, threads, files and children."""
    own = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
    children = [int(c) for path in own.glob("task/*/children") for c in path.read_text().split()]
    return {
        "mib": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "files": len(list((own / "fd").iterdir())),
        "children": len(children),
        "zombies": sum("Z (zombie)" in _state(child) for child in children),
    }


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


# ------------------------------------------------------------------------------------ the checks


def replay(federation: Federation, training: Training) -> dict[str, Any]:
    """Compute every version anew from the updates that its manifest names, and compare all bits."""
    model, differing, checked = federation.model(training.id), list[int](), 0
    for record in training.records():
        if record["is_evaluation"] or not record["is_completed"]:
            continue
        manifest = federation.round(record["round_id"]).status()["manifest"]
        entries = sorted(manifest["contributors"], key=lambda entry: str(entry["client"]))
        total, means = sum(entry["samples"] for entry in entries), dict[str, Any]()
        for entry in entries:
            discount = 1 / np.sqrt(1 + entry["staleness"])
            weight = np.float32(entry["samples"] / total * discount)
            for name, tensor in load(body_of(federation, entry)).items():
                term = weight * tensor
                means[name] = means[name] + term if name in means else term
        before, after = (
            model.fetch(version=record[which]) for which in ("base_version", "version")
        )
        checked += 1
        if any(
            (before[name] + np.float32(1) * mean).tobytes() != after[name].tobytes()
            for name, mean in means.items()
        ):
            differing.append(record["version"])
    return {"versions": checked, "differing": differing}


def body_of(federation: Federation, entry: Mapping[str, Any]) -> bytes:
    """Return the bytes of the version of an update that a manifest names."""
    source = ObjectVersion(entry["key"], entry["version"], entry["etag"], entry["nbytes"])
    return federation.stack.store.get_range(source, 0, source.nbytes)


def fates(federation: Federation, training: Training) -> dict[str, Any]:
    """Say what became of each update in the bucket: it counted once, or its client can read why."""
    counted: Counter[str] = Counter()
    unfinished = set[str]()
    for record in training.records():
        if not record["is_completed"]:
            unfinished.add(record["round_id"])
            continue
        manifest = federation.round(record["round_id"]).status()["manifest"]
        counted.update(entry["key"] for entry in manifest["contributors"])
    found: Counter[str] = Counter()
    lost = list[str]()
    for key, round_id, client in uploads(federation, training):
        is_rejected = federation.round(round_id).rejection(client) is not None
        if counted[key] == 1:
            found["counted"] += 1
        elif is_rejected:
            found["rejected"] += 1
        elif round_id in unfinished:
            found["of failed rounds"] += 1
        else:
            lost.append(key)
    twice = [key for key, times in counted.items() if times > 1]
    return {**found, "lost": lost, "counted twice": twice}


def uploads(federation: Federation, training: Training) -> Iterator[tuple[str, str, str]]:
    """Yield key, round and client of each update that was sent to a training."""
    for entry in federation.stack.store.list_objects(f"{ROUNDS}{training.id}-"):
        parsed = parse_update_key(entry.key)
        if parsed is not None:
            yield entry.key, parsed.round_id, parsed.client


def facts(federation: Federation, training: Training) -> dict[str, Any]:
    """Return what became of a training, and of all that was sent to it."""
    status = training.status()
    rounds = status["rounds"]
    return {
        "status": status["status"],
        "cause": status["cause"],
        "rounds": status["completed"],
        "evaluations": sum(r["is_evaluation"] and r["is_completed"] for r in rounds),
        "failed rounds": Counter(r["error"] for r in rounds if not r["is_completed"]),
        "run": status["run"],
        "dollars": round(status["dollars"], 4),
        "replay": replay(federation, training),
        "updates": fates(federation, training),
    }


def drive(engine: lifecycle.Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Leave the trainings alone, and return what became of them."""
    rng = random.Random(options.seed)  # noqa: S311 - not a secret
    federation = Federation(local=True, port=engine.port)
    trainings = start(federation, 60 * options.minutes)
    at_first, samples = measure(engine.pid or 0), list[dict[str, float]]()
    pauses = list[str]()
    log = options.log.open("ab")
    clients = [
        Client(training, f"c{number}", engine.port, rng)
        for training, count in CLIENTS.items()
        for number in range(count)
    ]
    began = time.monotonic()
    give_up = began + 60 * options.minutes + 600
    try:
        while any(t.state().status != ENDED for t in trainings.values()):
            if time.monotonic() > give_up:
                break
            for training in trainings.values():
                if (state := training.state()).status == PAUSED:
                    pauses.append(f"{training.id}: {state.cause}")
                    training.resume()
            for client in clients:
                client.look(federation, log)
            if time.monotonic() - began > 60 * len(samples):
                samples.append(measure(engine.pid or 0))
            time.sleep(1)
        for client in clients:
            client.wait()
    finally:
        for client in clients:
            client.end()
    time.sleep(15)
    counts: Counter[str] = Counter()
    for client in clients:
        counts += client.counts
    return {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "clients": dict(counts),
        "pauses": pauses,
        "engine": {"first": at_first, "last": measure(engine.pid or 0), "by minute": samples},
        **{name: facts(federation, training) for name, training in trainings.items()},
    }


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what clients print")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--training", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        take_part(Federation(local=True, port=options.port), options.training, options.client)
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = os.environ["XDG_DATA_HOME"] = cache
        engine = lifecycle.up(0, owner=os.getpid())
        try:
            print(json.dumps(drive(engine, options), indent=2))
        except GradshardError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise
        finally:
            lifecycle.down(engine.port, delete=True)


if __name__ == "__main__":
    main()
