"""What `make audit` makes of the answers of an index and of a database of vulnerabilities."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import audit
import pytest

NAMES = ["alpha", "beta"]
NOWHERE = "--osv-url=http://127.0.0.1:1/"


def wheel(name: str) -> bytes:
    """Return a wheel of nothing but its metadata."""
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return into.getvalue()


class Places:
    """An index (PEP 691) of two releases, and a database of vulnerabilities."""

    def __init__(self, port: int) -> None:
        self.index, self.database = f"http://127.0.0.1:{port}/simple", f"http://127.0.0.1:{port}/"
        self.wheels = {name: wheel(name) for name in NAMES}
        self.yanked: dict[str, bool | str] = dict.fromkeys(NAMES, False)
        self.status = 200
        self.known: dict[str, list[dict[str, Any]]] = {}

    def answer(self, path: str) -> tuple[str, bytes]:
        if path.endswith(".whl"):
            return "application/octet-stream", self.wheels[path[1:].partition("-")[0]]
        name = path.removeprefix("/simple/").rstrip("/")
        file = {
            "filename": f"{name}-1.0-py3-none-any.whl",
            "url": f"/{name}-1.0-py3-none-any.whl",
            "hashes": {"sha256": sha256(self.wheels[name])},
            "yanked": self.yanked[name],
        }
        page = {"meta": {"api-version": "1.1"}, "name": name, "files": [file]}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(*running.answer(self.path))

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = {"vulns": running.known.get(query["package"]["name"], [])}
            self.send("application/json", json.dumps(known).encode())

        def send(self, content_type: str, body: bytes) -> None:
            self.send_response(running.status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = Places(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", running.index)
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        yield running
        server.shutdown()
        thread.join()


@pytest.fixture
def root(places: Places, tmp_path: Path) -> Path:
    """A project that pins both releases."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["alpha>=1"]\noptional-dependencies.local = []\n'
        '[dependency-groups]\ndev = ["beta"]\ndocs = []\nlayer = ["beta"]\nkeeper = []\n'
    )
    pins = {
        name: f"{name}==1.0 \\\n    --hash=sha256:{sha256(places.wheels[name])}\n" for name in NAMES
    }
    (tmp_path / audit.LAYER).parent.mkdir(parents=True)
    (tmp_path / audit.DEV).write_text("".join(pins.values()))
    (tmp_path / audit.LAYER).write_text(pins["beta"])
    (tmp_path / audit.KEEPER).parent.mkdir(parents=True)
    (tmp_path / audit.KEEPER).write_text("")
    return tmp_path


def test_unchanged_pins_pass_the_audit(
    places: Places, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([f"--osv-url={places.database}"], root) == 0
    assert capsys.readouterr().out.count("audited ") == 3


def test_a_known_vulnerability_fails(
    places: Places, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}]
    affected = [{"package": {"name": "beta", "ecosystem": "PyPI"}, "ranges": fixed}]
    places.known["beta"] = [{"id": "PYSEC-1", "aliases": ["CVE-1"], "affected": affected}]
    assert audit.main([f"--osv-url={places.database}"], root) == audit.FOUND
    assert "beta 1.0: PYSEC-1 CVE-1; mended in 1.1" in capsys.readouterr().out


def test_an_index_that_does_not_answer_is_reported_as_not_audited(
    places: Places, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places.status = 503
    assert audit.main([NOWHERE], root) == audit.NOT_AUDITED
    told = capsys.readouterr().out
    assert told.count("NOT AUDITED") == 2
    assert "503" in told
    assert "refused" in told


def test_findings_count_even_if_another_source_does_not_answer(
    places: Places, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places.yanked["alpha"] = "it eats files"
    assert audit.main([NOWHERE], root) == audit.FOUND
    told = capsys.readouterr().out
    assert "`alpha==1.0` is yanked" in told
    assert "it eats files" in told
    assert "NOT AUDITED" in told


def test_an_index_that_is_too_slow_does_not_answer(
    places: Places, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(audit.NotAuditedError, match="uv had not ended after"):
        audit.changes(audit.read_pins(root / audit.DEV))


def test_files_that_were_changed_in_the_index_fail(places: Places, root: Path) -> None:
    pinned = sha256(places.wheels["beta"])
    places.wheels["beta"] += b"more"
    [found] = audit.changes(audit.read_pins(root / audit.DEV))
    assert found == f"beta 1.0: the index has no file with --hash=sha256:{pinned}"


def test_a_release_that_is_gone_from_the_index_fails(root: Path) -> None:
    pins = audit.read_pins(root / audit.DEV) | {"beta": ("1.1", frozenset({"sha256:0"}))}
    [found] = audit.changes(pins)
    assert "no version of beta==1.1" in found


def test_pins_that_disagree_fail(root: Path) -> None:
    dev, layer = (audit.read_pins(root / file) for file in (audit.DEV, audit.LAYER))
    assert audit.disagreements(root, dev, layer, {}) == []
    assert audit.disagreements(root, dev, layer, {"beta": ("0.9", frozenset())}) == [
        "beta is not the same in requirements-dev.txt and layers/keeper/requirements.txt"
    ]
    other = ("0.9", frozenset[str]())
    assert audit.disagreements(root, {**dev, "alpha": other, "beta": other}, {}, {}) == [
        "requirements-dev.txt pins 0.9 where pyproject.toml wants alpha>=1",
        "requirements-dev.txt has no hashes of beta",
        "layers/gradshard/requirements.txt pins nothing where pyproject.toml wants beta",
    ]
    assert audit.disagreements(root, dev, {"beta": other}, {})[0] == (
        "beta is not the same in requirements-dev.txt and layers/gradshard/requirements.txt"
    )
