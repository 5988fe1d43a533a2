"""Flower over S3: clients upload their updates, and the server opens a round for them.

``S3FedAvg`` takes the place of Flower's ``FedAvg`` in a ServerApp, ``s3_mod`` is a mod of its
ClientApp. Models then pass between clients and S3: neither the server nor Flower's messages hold
them. Importing this module imports flwr; the rest of gradshard does not.
"""

try:
    import flwr.app
    import flwr.serverapp.strategy.strategy_utils  # noqa: F401
except ImportError:
    raise ImportError(
        "gradshard.flower needs Flower, 1.41 or newer: `pip install 'gradshard[flower]'`",
        name="flwr",
    ) from None

from gradshard.flower.arrays import RECORD
from gradshard.flower.client_mod import mask_of_node, s3_masked_mod, s3_mod
from gradshard.flower.client_names import by_number
from gradshard.flower.strategy import UPLOADED_TIMEOUT, ClientNames, S3FedAvg

__all__ = [
    "RECORD",
    "UPLOADED_TIMEOUT",
    "ClientNames",
    "S3FedAvg",
    "by_number",
    "mask_of_node",
    "s3_masked_mod",
    "s3_mod",
]
