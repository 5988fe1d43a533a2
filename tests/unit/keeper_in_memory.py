"""A keeper in memory beside an aggregator in memory, both with the functions that are deployed."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from gradshard_core.mask_keeper.records import PRIVATE_KEY, KeeperKeys, client_key
from gradshard_core.masking import sealing, signing
from tests import masked, reference
from tests.unit.fakes import MemoryStore, MemoryWire
from tests.unit.in_memory import OPENED, ROOT, Machine
from tests.unit.observability.test_embedded_metrics import Context

Update = Mapping[str, reference.Array]


def load(name: str) -> ModuleType:
    """Import a function of the keeper, anew."""
    path = ROOT / "keeper" / "functions" / name / "app.py"
    spec = importlib.util.spec_from_file_location(f"{name}_app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Keeper:
    """The keeper's stack: its bucket, its key, and the aggregator's bucket, where it may write."""

    def __init__(self, aggregator: MemoryStore) -> None:
        self.store, self.aggregator = MemoryStore(), aggregator
        self.private_key = sealing.new_key()
        self.store.put_bytes(PRIVATE_KEY, self.private_key.hex().encode())
        self.signing_keys: dict[str, bytes] = {}
        self._modules: dict[str, ModuleType] = {}

    @property
    def public_key(self) -> str:
        return sealing.public_key(self.private_key).hex()

    @property
    def fingerprint(self) -> str:
        return sealing.fingerprint(bytes.fromhex(self.public_key))

    def enrol(self, clients: Sequence[str]) -> None:
        for client in clients:
            self.signing_keys[client] = signing.new_signing_key()
            key = signing.verification_key(self.signing_keys[client]).hex()
            self.store.put_json(client_key(client), {"client": client, "key": key})

    def load(self, function: str) -> ModuleType:
        if function not in self._modules:
            self._modules[function] = load(function)
        return self._modules[function]

    def step(self, function: str, **event: Any) -> dict[str, Any]:
        module = self.load(function)
        vars(module).update(
            store=self.store, answers=self.aggregator, s3=MemoryWire(self.aggregator)
        )
        answer: dict[str, Any] = module.handler(json.loads(json.dumps(event)), Context())
        return answer

    def answer(self, round_id: str) -> dict[str, Any]:
        """Do what the state machine does with the event of a request."""
        decided = self.step("check_request", key=KeeperKeys(round_id).request)
        for task in decided["tasks"]:
            self.step("sum_masks", **task)
        return self.step("give_answer", round=decided["round"])


class MaskedRound:
    """A masked round of the two."""

    def __init__(self, machine: Machine, keeper: Keeper, **terms: Any) -> None:
        self.machine, self.keeper = machine, keeper
        self.terms = {
            "bound": 4.0,
            "bits": 16,
            "ring_bits": 32,
            "max_samples": 1000,
            "keeper": keeper.public_key,
            **terms,
        }

    def open(self, clients: Sequence[str], update: Update, **spec: Any) -> dict[str, Any]:
        layout = {
            name: {"dtype": reference.NAMES[tensor.dtype], "shape": list(tensor.shape)}
            for name, tensor in update.items()
        }
        stated = {"clients": [*clients], "layout": layout, "masked": self.terms, **spec}
        opened = self.machine.open(**{k: v for k, v in stated.items() if v is not None})
        self.roster = [*clients]
        self.quorum = spec.get("min_clients", len(clients) // 2 + 1)
        self.encoding = masked.encoding(self.terms, update)
        return opened

    def info(self, client: str, /, **changes: Any) -> bytes:
        stated = {
            "round_id": self.machine.name,
            "client": client,
            "roster": self.roster,
            "quorum": self.quorum,
            "encoded": self.encoding,
        }
        return masked.info(**stated | changes)

    def submit(
        self, client: str, update: Update, samples: int, seed: bytes, /, **changes: Any
    ) -> bytes:
        key = self.keeper.signing_keys.get(client) or signing.new_signing_key()
        key = changes.pop("signing_key", key)
        info = self.info(client, **changes)
        body = masked.masked_update(self.terms, update, samples, seed, key, info)
        self.machine.store.put_bytes(self.machine.keys.update(client), body)
        return body

    def ask(self) -> None:
        assert self.machine.turn(OPENED) == {"status": "awaiting"}

    def finish(self) -> dict[str, Any]:
        """Go on with the answer, to the end; return the manifest."""
        outcome = self.machine.turn(OPENED)
        assert outcome == {"status": "completed"}
        manifest: dict[str, Any] = self.machine.store.get_json(self.machine.keys.manifest)
        return manifest

    def run(
        self,
        updates: Mapping[str, Update],
        samples: Mapping[str, int],
        lost: Sequence[str] = (),
        **spec: Any,
    ) -> dict[str, Any]:
        self.keeper.enrol([c for c in updates if c not in self.keeper.signing_keys])
        self.open([*updates], next(iter(updates.values())), **spec)
        for number, (client, update) in enumerate(updates.items()):
            if client not in lost:
                self.submit(client, update, samples[client], bytes([number]) * 32)
        self.ask()
        self.keeper.answer(self.machine.name)
        return self.finish()

    def result(self) -> dict[str, Any]:
        return reference.decode(self.machine.store.objects[self.machine.keys.result])


class KilledError(BaseException):
    """The function's process is killed."""


class Mortal:
    """A bucket at whose n-th request the function dies, before or after it has taken effect."""

    def __init__(self, store: Any, fate: "Fate") -> None:
        self._store, self._fate = store, fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def request(*arguments: Any, **named: Any) -> Any:
            return self._fate.meet(lambda: found(*arguments, **named))

        return request


class Fate:
    def __init__(self, number: int, *, is_done: bool) -> None:
        self.number, self.is_done, self.count = number, is_done, 0

    def meet(self, request: Callable[[], Any]) -> Any:
        self.count += 1
        if self.count != self.number:
            return request()
        if self.is_done:
            request()
        raise KilledError
