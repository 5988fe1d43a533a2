"""The pages' lines on PyTorch, as they stand: `make test-torch`."""

from typing import Any

import pytest

from gradshard.updates.tensors import Array, pack, unpack
from gradshard_core.formats.tensor_layout import encode_header
from tests.docs.pages import ROOT, blocks

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")


def written(tensors: dict[str, Any]) -> bytearray:
    """Return tensors as a safetensors object holds them."""
    layout, views = pack(tensors)
    return bytearray(encode_header(layout, {}) + b"".join(views))


class OneClientsRound:
    """A round of a single client, whose average is its update; no engine is in this environment."""

    def submit(self, client: str, update: dict[str, Any], samples: int) -> None:
        self._sent = written(update)

    def wait(self) -> None:
        assert self._sent

    def fetch(self) -> dict[str, Array]:
        return unpack(self._sent)


def test_a_model_goes_on_from_the_average() -> None:
    [block] = [b for b in blocks(ROOT / "docs" / "clients.md") if b.run_by == "make test-torch"]
    model = torch.nn.Linear(4, 3)
    trained: dict[str, Any] = {}

    def train(model: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        trained.update({name: t.clone() for name, t in model.state_dict().items()})
        assert not torch.equal(trained["bias"], before_training["bias"])

    before_training = {name: t.clone() for name, t in model.state_dict().items()}
    names = {"model": model, "train": train, "round_": OneClientsRound()}
    exec(block.text, names)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, trained[name])
        assert not torch.equal(tensor, before_training[name])


class OneClientsFederation(OneClientsRound):
    """A federation of a single client, its model and its only round."""

    def model(self) -> "OneClientsFederation":
        return self

    def put(self, model: dict[str, Any], *, buffers: list[str]) -> None:
        assert buffers == []
        self._model = written(model)

    def open_round(
        self, name: str, clients: list[str], server_optimizer: str
    ) -> "OneClientsFederation":
        assert server_optimizer == "fedavg"
        return self

    def fetch_model(self) -> dict[str, Array]:
        return unpack(self._model)


def test_the_federations_model_is_loaded_trained_and_submitted() -> None:
    [block] = [b for b in blocks(ROOT / "docs" / "models.md") if b.run_by == "make test-torch"]
    net, federation = torch.nn.Linear(4, 3), OneClientsFederation()

    def train(model: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)

    exec(block.text, {"net": net, "train": train, "federation": federation})
    model, change = federation.fetch_model(), federation.fetch()
    for name, tensor in net.state_dict().items():
        assert torch.allclose(tensor, torch.from_numpy(model[name] + change[name])), name
