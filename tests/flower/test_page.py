"""docs/flower.md's lines, as they stand: `make test-flower`."""

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: `make test-flower`")

from tests.docs.pages import ROOT, blocks
from tests.flower.clients import DirectGrid, Model, client_app, model_of, record_of

if "AWS_ENDPOINT_URL" not in os.environ:
    pytest.skip("no local engine: `make test-flower`", allow_module_level=True)


def test_the_two_apps_of_the_page_train_together() -> None:
    client, server, masked = (
        block.text
        for block in blocks(ROOT / "docs" / "flower.md")
        if block.run_by == "make test-flower"
    )
    names: dict[str, Any] = {}
    exec(client, names)
    exec(masked, dict(names))
    model: Model = {"w": np.ones((3, 2), np.float32)}

    def trained(model: Model, node: int, server_round: int) -> tuple[Model, float]:
        return {name: array + np.float32(1) for name, array in model.items()}, 10

    app = client_app(trained, [], app=names["app"])
    names |= {"grid": DirectGrid(dict.fromkeys((1, 2), app)), "initial_arrays": record_of(model)}
    exec(server, names)
    assert (model_of(names["result"].arrays)["w"] == 3).all()
