"""Settings of the user's that boto3 answers with errors of Python's."""

import sys
from pathlib import Path

import pytest

from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.client_store import ClientStore
from gradshard.client.federation import Federation
from gradshard_core.errors import GradshardError, ServiceError, StoreError


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def test_a_credential_process_that_prints_no_json(tmp_path: Path) -> None:
    command = f"{sys.executable} -c print(len)"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    with pytest.raises(ServiceError, match="the answer of credential_process is not JSON"):
        Federation().round("r1").spec()
    with pytest.raises(StoreError, match="the answer of credential_process is not JSON"):
        ClientStore("bucket", make_client(session=make_session())).head("k")


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "nowhere", "://"])
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(GradshardError, match="AWS_ENDPOINT_URL"):
        Federation().round("r1").spec()
    with pytest.raises(GradshardError, match="AWS_ENDPOINT_URL"):
        Federation(bucket="b").round("r1").spec()
