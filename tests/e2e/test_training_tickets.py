"""Clients without AWS credentials in a training of the deployed application."""

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from gradshard import Federation
from gradshard.client import training_by_ticket
from gradshard.client.training import Training
from gradshard.client.training_by_ticket import TicketTraining
from gradshard_core.errors import TicketError, TrainingNotFoundError
from gradshard_core.records.training_state import Invitation
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from tests.e2e.deployed import Deployed, until
from tests.e2e.test_trainings import FIRST, SECONDS, Weights, evaluate, expected, train_as

pytestmark = pytest.mark.e2e

CLIENTS = ["ann", "bo"]


def start(federation: Federation, name: str, rounds: int) -> Training:
    federation.model(name).put(FIRST)
    return federation.train(
        name,
        rounds=rounds,
        clients=CLIENTS,
        server_optimizer={"optimizer": "fedavg", "model": name},
        evaluate_every=rounds,
        poll_interval=0.2,
        timeout=120,
    )


@contextlib.contextmanager
def without_credentials() -> Iterator[None]:
    """Take away what boto3 could sign with; the functions are in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        yield


def test_two_holders_of_tickets_train_to_the_bits_of_a_loop(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose notices are old at once, so that they are renewed at each look."""
    monkeypatch.setattr(training_by_ticket, "RENEW_SECONDS", 2.0)
    training = start(federation, "ticketed", 3)
    for client in CLIENTS:
        training.ticket(client).save(tmp_path / client)
    before = (tmp_path / "ann").read_text()
    with without_credentials(), ThreadPoolExecutor() as pool:
        loops = {
            client: pool.submit(
                TicketTraining.load(tmp_path / client).participate, train_as(client), evaluate
            )
            for client in CLIENTS
        }
        for loop in loops.values():
            done = loop.result(SECONDS)
            assert (done.trained, done.evaluated) == ((1, 2, 3), (3,))
            assert done.state.cause == "all 3 rounds have completed"
    model = federation.model("ticketed").fetch()
    for name, tensor in expected(CLIENTS, 3).items():
        assert model[name].tobytes() == tensor.tobytes(), name
    newer = json.loads((tmp_path / "ann").read_text())
    assert newer["urls"][1:] == json.loads(before)["urls"]
    assert "X-Amz-Security-Token" in newer["urls"][0]["notice"]
    assert (tmp_path / "ann").stat().st_mode & 0o777 == 0o600


def test_holders_of_tickets_take_part_in_a_buffered_training(
    federation: Federation, tmp_path: Path
) -> None:
    """Each of their updates counts once, or its sender is told why it does not."""
    federation.model("buffered-tickets").put(FIRST)
    training = federation.train(
        "buffered-tickets",
        mode="buffered",
        updates_per_version=2,
        rounds=3,
        clients=CLIENTS,
        server_optimizer={"optimizer": "fedavg", "model": "buffered-tickets"},
        poll_interval=0.2,
        timeout=120,
    )
    for client in CLIENTS:
        training.ticket(client).save(tmp_path / client)
    with without_credentials(), ThreadPoolExecutor() as pool:
        held = [TicketTraining.load(tmp_path / client) for client in CLIENTS]
        loops = [
            pool.submit(h.participate, train_as(c), evaluate)
            for h, c in zip(held, CLIENTS, strict=True)
        ]
        done = dict(zip(CLIENTS, [loop.result(SECONDS) for loop in loops], strict=True))
    assert training.state().cause == "all 3 rounds have completed"
    records = training.records()
    for client in CLIENTS:
        counted = [
            record["base_version"] - record["staleness"][client]
            for record in records
            if client in record["staleness"]
        ]
        rejected = [update.number for update in done[client].rejected]
        assert sorted(counted + rejected) == list(done[client].trained)
    for record in records:
        assert federation.round(record["round_id"]).verify(sample=1.0).is_correct


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradshard", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def requested(method: str, url: str, headers: dict[str, str], body: bytes = b"") -> int:
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}", body, headers)
        return connection.getresponse().status


def test_a_ticket_reaches_the_objects_of_its_client_alone(
    federation: Federation, deployed: Deployed
) -> None:
    """Whatever key, method or length is asked for with its signatures, besides its own."""
    training = start(federation, "alone-with-a-ticket", 2)
    held = TicketTraining(training.ticket("ann"))
    other = TicketTraining(training.ticket("bo"))
    state = until(lambda: held.state() if held.state().invitation else None)
    other.renew()
    invitation = state.invitation
    assert isinstance(invitation, Invitation)
    assert invitation.clients == ("ann",)
    assert b'"bo"' not in deployed.read(training.keys.notice("ann"))
    ticket = held.round(invitation).ticket
    newest = held.ticket.urls[0]
    urls = {
        ("GET", newest.notice): 200,
        ("PUT", newest.renewal): 200,
        ("HEAD", ticket.uploaded_url): 404,
        ("GET", ticket.rejection_url): 404,
        ("HEAD", ticket.ended_url): 404,
    }
    for (method, url), status in urls.items():
        mode = CHECKSUM_MODE if url == ticket.uploaded_url else {}
        headers = {"Content-Length": "0", **mode}
        assert requested(method, url, headers) == status
        parts = urlsplit(url)
        for other_method in {"GET", "PUT", "DELETE", "HEAD"} - {method}:
            assert requested(other_method, url, headers) == 403
        for key in (
            parts.path.replace("ann", "bo"),
            parts.path.rsplit("/", 1)[0] + "/other",
            f"/{deployed.bucket}/{training.keys.state}",
            f"/{deployed.bucket}/",
        ):
            if key == parts.path:
                continue  # the client is not in it
            changed = parts._replace(path=key).geturl()
            assert requested(method, changed, headers) == 403
        longer = dict(parse_qsl(parts.query)) | {"X-Amz-Expires": "604800"}
        assert requested(method, parts._replace(query=urlencode(longer)).geturl(), headers) == 403
    length = min(ticket.upload_lengths)
    headers = {"If-None-Match": "*", "Content-Length": str(length)}
    assert (
        requested("PUT", ticket.upload_url(length), headers | {"If-None-Match": "x"}, bytes(length))
        == 403
    )
    assert requested("PUT", newest.renewal, {"Content-Length": "1"}, b"x") == 403
    training.stop("seen", now=True)


def test_a_revoked_ticket_and_one_of_another_training_say_so(
    federation: Federation, tmp_path: Path
) -> None:
    training = start(federation, "revoked", 2)
    training.ticket("ann").save(tmp_path / "ticket")
    training.revoke("ann")
    with without_credentials(), pytest.raises(TrainingNotFoundError, match="was revoked"):
        TicketTraining.load(tmp_path / "ticket").participate(train_as("ann"))
    (tmp_path / "junk").write_text("{}")
    with pytest.raises(TicketError, match="is not a ticket of a training"):
        TicketTraining.load(tmp_path / "junk")
    ended = command("join", "u", "ann", "--ticket", str(tmp_path / "ticket"), "--", "x")
    assert ended.returncode == 1
    assert "is a ticket of client 'ann' in training 'revoked'" in ended.stderr
    training.stop("seen", now=True)


def test_the_command_joins_with_a_ticket(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, shutil\n"
        "shutil.copy('model.safetensors', 'trained.safetensors')\n"
        "json.dump({'samples': 5, 'metrics': {'loss': 1}}, open('result.json', 'w'))\n"
    )
    federation.model("by-command").put(FIRST)
    training = federation.train(
        "by-command",
        rounds=1,
        clients=["ann"],
        server_optimizer={"optimizer": "fedavg", "model": "by-command"},
        evaluate_every=1,
        poll_interval=0.2,
    )
    monkeypatch.chdir(tmp_path)
    training.ticket("ann").save("ann.ticket")
    with without_credentials():
        given = ("--ticket", "ann.ticket", "--", sys.executable, str(program))
        ended = command("join", "by-command", "ann", *given)
    assert (ended.returncode, ended.stderr[:18]) == (0, "with a ticket of h")
    assert training.wait(SECONDS).completed == 1
    kept: Weights = federation.model("by-command").fetch()
    assert {n: t.tobytes() for n, t in kept.items()} == {n: t.tobytes() for n, t in FIRST.items()}
