"""A client's masks: what is sent to whom, and with which seed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.updates.mask import Mask, MaskedContent, masked
from gradshard.updates.mask_identity import make_identity
from gradshard.updates.upload_source import TensorContent, header_bytes
from gradshard.updates.uploads import upload
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.masking import sealing
from gradshard_core.masking.sealing import SealContext
from gradshard_core.s3 import client_transfers
from gradshard_core.specs.masking_options import Agreement, encoding_of
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_spec
from tests.unit.fakes import MemoryStack, MemoryStore

PRIVATE = sealing.new_key()
PUBLIC = sealing.public_key(PRIVATE)
UPDATE = {"w": np.arange(5000, dtype="f4") / 5000}
LAYOUT = {"w": {"dtype": "F32", "shape": [5000]}}


def spec_of(**changes: Any) -> RoundSpec:
    terms = {"bound": 1.0, "max_samples": 100, "keeper": PUBLIC.hex()}
    return parse_spec({"clients": ["a", "b"], "layout": LAYOUT, "masked": terms, **changes})


@pytest.fixture
def mask(tmp_path: Path) -> Mask:
    make_identity(tmp_path / "key")
    return Mask(tmp_path / "key", sealing.fingerprint(PUBLIC))


def content_of(mask: Mask, update: dict[str, Any] = UPDATE, **changes: Any) -> MaskedContent:
    stated: dict[str, Any] = {"samples": 7, "client": "a", "round_id": "r", "spec": spec_of()}
    stated |= changes
    spec = stated["spec"]
    layout = spec.layout
    assert isinstance(layout, Layout)
    content = TensorContent(update, stated["samples"])
    agreement = Agreement.of(spec)
    return masked(content, agreement, layout, mask, stated["client"], stated["round_id"])


def seed_of(content: MaskedContent) -> bytes:
    """Open what the client has sealed, as the keeper does."""
    header = parse_header(content.read(8, header_bytes(content)), content.nbytes)
    agreement = Agreement.of(spec_of())
    assert agreement is not None
    layout = Layout.pack([("w", "F32", [5000])])
    encoding = encoding_of(agreement.terms, layout)
    context = SealContext("r", "a", agreement.roster, agreement.min_clients, encoding)
    return sealing.unseal(bytes.fromhex(header.metadata["sealed_seed"]), PRIVATE, context)


def bytes_of(content: MaskedContent) -> bytes:
    return content.read(0, content.nbytes)


def test_the_same_update_again_has_the_same_bytes_and_so_its_upload_goes_on(mask: Mask) -> None:
    assert bytes_of(content_of(mask)) == bytes_of(content_of(mask))
    # A program that starts again has the file of the key, and nothing else.
    started_again = Mask(mask.signing_key, mask.keeper)
    assert bytes_of(content_of(mask)) == bytes_of(content_of(started_again))
    assert not any(path.name != "key" for path in Path(str(mask.signing_key)).parent.iterdir())


def test_a_program_that_starts_again_sends_only_what_is_missing(
    mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transfers, "CLIENT_RANGE_BYTES", 4096)
    store = MemoryStore()
    store.cut_stream_after, store.parts_until_failure = 6000, 3
    with pytest.raises(StoreError, match="cut"):
        upload(store, "k", content_of(mask))
    there, store.sent = set(store.sent), []
    store.parts_until_failure = 100
    content = content_of(Mask(mask.signing_key, mask.keeper))
    upload(store, "k", content)
    assert len(there) == 3
    assert not there & set(store.sent)
    assert store.objects["k"] == bytes_of(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"update": {"w": np.roll(UPDATE["w"], 1)}},
        {"samples": 8},
        {"client": "b"},
        {"round_id": "r2"},
        {"spec": spec_of(min_clients=2, clients=["a", "b", "c"])},
        {"spec": spec_of(masked={"bound": 2.0, "max_samples": 100, "keeper": PUBLIC.hex()})},
    ],
)
def test_whatever_differs_has_another_seed(mask: Mask, changes: dict[str, Any]) -> None:
    first, other = bytes_of(content_of(mask)), bytes_of(content_of(mask, **changes))
    # Neither the seed's encapsulated key: two seeds under one would be sent with one key stream.
    sealed = [re.search(rb'"sealed_seed":"([0-9a-f]{64})', body) for body in (first, other)]
    assert None not in sealed
    assert len({found[1] for found in sealed if found}) == 2
    ends = [np.frombuffer(body[-20_000:], "<u4").astype("i8") for body in (first, other)]
    # With one seed, the difference of the masked elements would be that of the encoded ones.
    distance = (ends[0] - ends[1] + 2**31) % 2**32 - 2**31
    assert np.abs(distance).max() > 100 * 2**16


def test_another_key_of_the_client_has_another_seed(mask: Mask, tmp_path: Path) -> None:
    make_identity(tmp_path / "other")
    other = Mask(tmp_path / "other", mask.keeper)
    assert seed_of(content_of(mask)) != seed_of(content_of(other))


def test_another_length_of_the_update_has_another_seed(mask: Mask) -> None:
    # With noise, the length decides what is masked. Another machine may sum it in another order.
    context = SealContext("r", "a", "0" * 64, 2, "")
    seeds = {mask.sealed("ab", scale, PUBLIC, context).seed for scale in (1.0, 1.0 + 2**-52)}
    assert len(seeds) == 2


def test_clipped_elements_are_counted_once_however_often_they_are_read(mask: Mask) -> None:
    values = np.linspace(-2, 2, 5000, dtype="f4")
    content = content_of(mask, {"w": values})
    for _ in range(2):
        bytes_of(content)
    assert mask.clipped == np.count_nonzero(np.abs(values) > 1) > 2000


def test_an_infinity_is_an_error_and_nothing_is_sent(mask: Mask) -> None:
    update = {"w": np.where(np.arange(5000) == 4321, np.inf, 0).astype("f4")}
    with pytest.raises(UpdateError, match="a masked update has finite values only"):
        bytes_of(content_of(mask, update))


def test_a_mask_goes_with_no_codec_and_no_reports(mask: Mask) -> None:
    store = MemoryStore()
    store.put_json(RoundKeys("r").spec, {"spec": spec_of().to_json(), "opened_at": ""})
    round_ = Round(MemoryStack(store), "r")
    with pytest.raises(UpdateError, match="tell nothing of their training"):
        round_.submit("a", UPDATE, 7, mask=mask, metrics={"loss": 1.0})
    with pytest.raises(UpdateError, match="not compressed"):
        round_.submit("a", UPDATE, 7, mask=mask, codec="int8")
    assert [key for key in store.objects if "updates/" in key] == []
    assert not round_.submit("a", UPDATE, 7, mask=mask)
    assert not round_.submit("a", UPDATE, 7, mask=mask)  # replaces nothing: it is there already
    assert mask.clipped == 0


def test_an_identity_is_made_once_and_is_private(tmp_path: Path) -> None:
    public = make_identity(tmp_path / "key")
    assert make_identity(tmp_path / "key") == public
    assert len(public) == 64
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert public not in (tmp_path / "key").read_text()


def test_a_file_without_a_key_says_how_to_make_one(tmp_path: Path) -> None:
    file = tmp_path / "alice.key"
    with pytest.raises(UpdateError, match=r"no signing key at .*alice\.key: make one"):
        Mask(file, "00").key()
    file.write_text("not hexadecimal")
    with pytest.raises(UpdateError, match=r"alice\.key is no signing key"):
        Mask(file, "00").key()
    file.write_text("00" * 31)
    with pytest.raises(UpdateError, match="has a key of 31 bytes, not 32"):
        Mask(file, "00").key()


def test_a_mask_does_not_show_its_key() -> None:
    assert "secret" not in repr(Mask(b"secret" + bytes(26), "00"))
