"""The requests in which clients send and fetch."""

from gradshard_core.s3 import client_transfers
from gradshard_core.units import MIB


def test_clients_fetch_large_results_in_few_ranges() -> None:
    assert client_transfers.download_ranges(0) == []
    assert client_transfers.download_ranges(64 * MIB) == [(0, 64 * MIB)]
    assert client_transfers.download_ranges(64 * MIB + 1) == [
        (0, 64 * MIB),
        (64 * MIB, 64 * MIB + 1),
    ]
    assert len(client_transfers.download_ranges(10**10)) == 4
    assert client_transfers.download_ranges(10**12)[-1] == (750 * 10**9, 10**12)


def test_clients_send_large_updates_in_few_parts() -> None:
    assert client_transfers.client_ranges(16 * MIB) == [(0, 16 * MIB)]
    assert client_transfers.client_ranges(16 * MIB + 1) == [(0, 16 * MIB), (16 * MIB, 16 * MIB + 1)]
    assert len(client_transfers.client_ranges(10**10)) == 8
    assert max(end - start for start, end in client_transfers.client_ranges(10**12)) == 5 * 1024**3
