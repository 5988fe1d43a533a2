"""Files of other programs to safetensors; the checkpoints with `make test-torch`."""

import io
import json
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gradshard.updates import conversion as converting
from gradshard.updates.conversion import convert
from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.cli.conftest import run

__all__ = ["run"]  # the fixture


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "update.safetensors"


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def write(compressed: bool = False, **arrays: Any) -> Path:
        path = tmp_path / "in.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return write


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    return tmp_path / "sprung"


@pytest.mark.parametrize("compressed", [False, True])
def test_every_array_of_an_npz_arrives(
    npz: Callable[..., Path], target: Path, compressed: bool
) -> None:
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "small": np.arange(5, dtype="u1"),
        "layer/weight": rng.standard_normal((300, 1000)),  # more than a chunk
        "fortran": np.asfortranarray(rng.standard_normal((20, 30)).astype("f4")),
        "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
        "both": np.asfortranarray(np.arange(6, dtype=">f2").reshape(2, 3)),
        "scalar": np.float32(2.5),
        "empty": np.empty((0, 3), "f4"),
    }
    told: list[tuple[int, int]] = []
    done = convert(npz(compressed, **arrays), target, progress=lambda *now: told.append(now))
    assert done.left_out == []
    assert done.nbytes == target.stat().st_size
    assert told[-1] == (done.nbytes, done.nbytes)
    assert all(t.start % DTYPES[t.dtype].size == 0 for t in done.layout.tensors)
    back = load_file(target)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == np.asarray(array).dtype.newbyteorder("<"), name
        np.testing.assert_array_equal(back[name], array)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_number_of_samples_is_in_the_metadata(npz: Callable[..., Path], target: Path) -> None:
    convert(npz(w=np.ones(2)), target, samples=7)
    with safe_open(target, "np") as file:
        assert file.metadata() == {"num_samples": "7"}


def test_entries_that_cannot_be_averaged_are_left_out_and_named(
    npz: Callable[..., Path], target: Path, trap: Path
) -> None:
    path = npz(
        w=np.ones(2),
        objects=np.array([Trap()], object),
        text=np.array(["x"]),
        mask=np.array([True]),
        waves=np.ones(2, complex),
        brain=np.ones(2, ml_dtypes.bfloat16),
        records=np.zeros(2, [("a", "f4")]),
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("note.txt", "hello")
    done = convert(path, target)
    assert list(load_file(target)) == ["w"]
    reasons = dict(done.left_out)
    assert list(reasons) == ["objects", "text", "mask", "waves", "brain", "records", "note.txt"]
    assert "not unpickled" in reasons["objects"]
    assert "bool" in reasons["mask"]
    assert "bfloat16" in reasons["brain"]
    assert "not an array" in reasons["note.txt"]
    assert not trap.exists()


def test_nothing_to_convert(npz: Callable[..., Path], target: Path) -> None:
    with pytest.raises(UpdateError, match=r"holds no tensor.*'mask', for one, is left out.*bool"):
        convert(npz(mask=np.array([True])), target)
    with pytest.raises(UpdateError, match=r"holds no tensor.*empty"):
        convert(npz(), target)
    with pytest.raises(UpdateError, match=r"holds no tensor.*: 'none' has no elements"):
        convert(npz(none=np.zeros((0, 3))), target)
    assert list(target.parent.iterdir()) == []


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the only member of an archive, which stays a sound archive."""
    with zipfile.ZipFile(path) as archive:
        [name] = archive.namelist()
        data = archive.read(name)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, change(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"'w' has shape \[4\] of float64, 32 bytes, but there are 31"),
        (lambda data: data + b"x", "but there are 33"),
        (lambda data: data.replace(b"(4,)", b"(5,)"), "40 bytes, but there are 32"),
        (lambda data: data.replace(b"'<f8'", b"'???'"), "the head of 'w' cannot be read"),
        (lambda _data: b"", "the head of 'w' cannot be read"),
    ],
)
def test_a_damaged_array_fails_the_conversion(
    npz: Callable[..., Path], target: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = rewritten(npz(w=np.ones(4)), change)
    with pytest.raises(UpdateError, match=message):
        convert(path, target)
    assert list(target.parent.iterdir()) == []


def test_bytes_that_changed_in_the_archive_are_noticed(
    npz: Callable[..., Path], target: Path
) -> None:
    path = npz(w=np.full(1000, 7.0))
    data = bytearray(path.read_bytes())
    data[data.find(np.float64(7).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(UpdateError, match="'w' cannot be read: Bad CRC"):
        convert(path, target)
    assert list(target.parent.iterdir()) == []


def test_files_of_other_kinds(tmp_path: Path, target: Path, trap: Path) -> None:
    for data in (b"", b"junk", pickle.dumps(Trap()), np.ones(3).tobytes()):
        (tmp_path / "in").write_bytes(data)
        with pytest.raises(UpdateError, match=r"neither an \.npz nor a torch checkpoint"):
            convert(tmp_path / "in", target)
    assert not trap.exists()


def test_memory_that_does_not_suffice(
    npz: Callable[..., Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(converting, "_bytes", exhausted)
    with pytest.raises(UpdateError, match=r"'w' of shape \[2\] does not fit in memory"):
        convert(npz(w=np.ones(2)), target)


def test_the_file_itself_is_not_overwritten(npz: Callable[..., Path]) -> None:
    path = npz(w=np.ones(2))
    with pytest.raises(UpdateError, match="is the file to convert"):
        convert(path, path)


def test_the_command_prints_the_written_and_the_left_out_entries(
    run: Run, npz: Callable[..., Path], target: Path
) -> None:
    path = npz(w=np.ones(2), **{"ma\x1bsk": np.array([True])})
    result = run("convert", path, "-o", target, "--samples", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first.startswith(f"wrote {target} (1 tensor, ")
    assert second.startswith(r"left out ma\x1bsk: ")


def test_the_command_as_json(run: Run, npz: Callable[..., Path], target: Path) -> None:
    path = npz(w=np.ones(2), **{f"mask{i}": np.array([True]) for i in range(25)})
    document = json.loads(run("convert", path, "-o", target, "--samples", 3, "--json").stdout)
    assert (document["tensors"], document["num_samples"]) == (1, 3)
    assert len(document["left_out"]) == 25
    assert "5 more; --json lists them" in run("convert", path, "-o", target).stdout


def test_the_commands_errors_are_one_line(
    run: Run, npz: Callable[..., Path], tmp_path: Path
) -> None:
    path = npz(w=np.ones(2))
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-20])
    out = tmp_path / "out"
    for arguments, text in (
        ((tmp_path / "none", "-o", out), "none: No such file"),
        ((tmp_path / "junk", "-o", out), "neither an .npz"),
        ((tmp_path / "cut", "-o", out), "lacks the end of one: get it again"),
        ((path, "-o", tmp_path / "no" / "out"), "there is no folder"),
        ((path, "-o", tmp_path), "is a directory"),
        ((tmp_path, "-o", out), "is a directory; name a file to read"),
        ((path, "-o", out, "--samples", 0), "samples is 0"),
        ((path, "-o", out, "--key", "model"), "no keys (--key)"),
        ((path,), "--output"),
    ):
        assert_one_line(run("convert", *arguments), text)
    assert not out.exists()


def checkpoint_of(data: bytes) -> bytes:
    """Return an archive that is a checkpoint by its looks."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return stream.getvalue()


def test_a_checkpoint_needs_a_safe_torch(
    tmp_path: Path, target: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.pt"
    path.write_bytes(checkpoint_of(pickle.dumps(Trap())))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UpdateError, match=r"PyTorch is not installed.*gradshard\[torch\]"):
        convert(path, target)
    old = ModuleType("torch")
    vars(old)["__version__"] = "2.5.1+cpu"
    monkeypatch.setitem(sys.modules, "torch", old)
    with pytest.raises(UpdateError, match=r"torch 2\.5\.1\+cpu may run code.*CVE-2025-32434"):
        convert(path, target)
    assert not trap.exists()


class TestCheckpoints:
    """With the real PyTorch."""

    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        return pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")

    @pytest.fixture
    def saved(self, torch: Any, tmp_path: Path) -> Callable[..., Path]:
        def save(entry: Any, **options: Any) -> Path:
            torch.save(entry, tmp_path / "in.pt", **options)
            return tmp_path / "in.pt"

        return save

    def test_every_tensor_arrives(
        self, torch: Any, saved: Callable[..., Path], target: Path
    ) -> None:
        weight = torch.randn(600, 500)
        state = {
            "weight": weight,
            "tied": weight,
            "transposed": weight.T,
            "view": weight[10:20, ::2],
            "brain": torch.randn(4, 3).bfloat16(),
            "count": torch.tensor(3),
            "empty": torch.empty(0, 2),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
        done = convert(saved(state), target, samples=5)
        assert done.left_out == []
        with safe_open(target, "pt") as file:
            assert file.metadata() == {"num_samples": "5"}
            assert set(file.keys()) == set(state)
            for name, tensor in state.items():
                back = file.get_tensor(name)
                assert back.dtype == tensor.dtype
                assert torch.equal(back, tensor), name

    def test_the_state_dict_is_found_beside_other_things(
        self, torch: Any, saved: Callable[..., Path], target: Path
    ) -> None:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        path = saved({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
        done = convert(path, target)
        assert set(load_file(target)) == {"weight", "bias"}
        assert [name for name, _ in done.left_out] == ["epoch", "optimizer"]
        assert dict(done.left_out)["epoch"] == "beside 'model': of type int"

    def test_several_states_are_chosen_from_by_key(
        self, torch: Any, saved: Callable[..., Path], target: Path
    ) -> None:
        path = saved({"model": {"w": torch.ones(1)}, "average": {"w": torch.zeros(1)}})
        with pytest.raises(UpdateError, match="under 'model', 'average': choose one with --key"):
            convert(path, target)
        with pytest.raises(UpdateError, match="under 'model', 'average', not under 'modle'"):
            convert(path, target, key="modle")
        convert(path, target, key="average")
        assert load_file(target)["w"].tolist() == [0]

    def test_entries_that_are_no_plain_tensors_are_left_out(
        self, torch: Any, saved: Callable[..., Path], target: Path
    ) -> None:
        state = {
            "w": torch.ones(2),
            "mask": torch.tensor([True]),
            "waves": torch.ones(1, dtype=torch.complex64),
            "sparse": torch.eye(2).to_sparse(),
            "step": 3,
            7: torch.ones(1),
            "repeated": torch.ones(1).expand(10**12),
        }
        done = convert(saved(state), target)
        assert list(load_file(target)) == ["w"]
        reasons = dict(done.left_out)
        assert list(reasons) == ["mask", "waves", "sparse", "step", "7", "repeated"]
        assert reasons["step"] == "not a tensor: of type int"
        assert "more than the file's" in reasons["repeated"]

    def test_objects_that_run_code_are_rejected_and_not_run(
        self, torch: Any, saved: Callable[..., Path], target: Path, trap: Path
    ) -> None:
        for entry in ({"w": torch.ones(1), "trap": Trap()}, torch.nn.Linear(1, 1)):
            with pytest.raises(UpdateError, match=r"holds objects that may run code, such as \w+"):
                convert(saved(entry), target)
        assert not trap.exists()
        assert list(target.parent.iterdir()) == []

    def test_checkpoints_that_are_none(
        self, torch: Any, saved: Callable[..., Path], target: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UpdateError, match="holds a list, not a state_dict"):
            convert(saved([torch.ones(1)]), target)
        with pytest.raises(UpdateError, match=r"no tensor.*'epoch', for one, is left out"):
            convert(saved({"epoch": 3}), target)
        with pytest.raises(UpdateError, match=r"older than torch 1\.6"):
            convert(saved({"w": torch.ones(1)}, _use_new_zipfile_serialization=False), target)
        (tmp_path / "in.pt").write_bytes(checkpoint_of(b"junk"))
        with pytest.raises(UpdateError, match="cannot be read as a torch checkpoint"):
            convert(tmp_path / "in.pt", target)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(1000))
    usage = shutil.disk_usage(tmp_path)._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"8\.\d kB are needed on this disk, and 3\.0 kB are free"):
        convert(tmp_path / "a.npz", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def npy(header: bytes, version: bytes, length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2 if version == b"\1\0" else 4, "little") + header


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0"])
def test_a_header_that_is_no_arrays_is_not_read(
    tmp_path: Path, target: Path, version: bytes
) -> None:
    nbytes = 60_000 if version == b"\1\0" else 300_000_000
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy(b" " * 60_000, version, nbytes))
    with pytest.raises(UpdateError, match=f"its header has {nbytes} bytes, over the 10000"):
        convert(path, target)


def test_an_array_in_fortrans_order_takes_little_memory(
    npz: Callable[..., Path], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "CHUNK_BYTES", 1000)
    array = np.asfortranarray(np.arange(24_000, dtype=">f4").reshape(20, 30, 40))
    file = npz(compressed=True, w=array)
    tracemalloc.start()
    convert(file, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(load_file(target)["w"], array)
    assert peak < 400_000


def test_a_fifo_is_not_waited_for(tmp_path: Path, target: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is a FIFO or a pipe, not a regular file"):
        convert(tmp_path / "fifo", target)
