"""Sessions and clients of botocore, against what botocore makes by itself."""

from pathlib import Path

import botocore.session
import pytest
from botocore.exceptions import ProfileNotFound, UnknownServiceError

from gradshard_core.s3.boto_client import connect, make_session
from gradshard_core.s3.sigv4 import Credentials

KEYS = Credentials("AKID", "secret", "token")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    config.write_text(
        "[default]\nregion = eu-west-1\naws_access_key_id = D\naws_secret_access_key = d\n"
        "[profile p]\nregion = eu-west-2\naws_access_key_id = P\naws_secret_access_key = p\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "region", "key"),
    [
        ({}, "eu-west-1", "D"),
        ({"profile": "p"}, "eu-west-2", "P"),
        ({"profile": "p", "region": "us-east-2"}, "us-east-2", "P"),
        ({"credentials": KEYS}, "eu-west-1", "AKID"),
    ],
)
def test_what_a_session_is_given_counts(given: dict[str, str], region: str, key: str) -> None:
    client = make_session(**given).create_client("s3")  # type: ignore[arg-type]
    assert client.meta.region_name == region
    assert client._request_signer._credentials.access_key == key  # type: ignore[attr-defined]


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(ProfileNotFound, match="nope"):
        make_session(profile="nope")


@pytest.mark.parametrize(
    "service", ["s3", "cloudformation", "stepfunctions", "lambda", "logs", "sts", "sso", "sso-oidc"]
)
def test_services_are_described_as_by_botocore(service: str) -> None:
    mine, plain = make_session(), botocore.session.get_session()
    for session in (mine, plain):
        session.set_credentials("AKID", "secret")
    found, expected = mine.create_client(service), plain.create_client(service)
    assert found.meta.endpoint_url == expected.meta.endpoint_url
    assert found.meta.service_model.api_version == expected.meta.service_model.api_version
    assert found.meta.service_model.operation_names == expected.meta.service_model.operation_names


def test_a_service_that_is_none() -> None:
    with pytest.raises(UnknownServiceError, match="nosuch"):
        make_session().create_client("nosuch")


def test_descriptions_of_the_users_own_are_found(
    surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", str(surroundings / "models"))
    paths = make_session().get_component("data_loader").search_paths
    assert str(surroundings / "models") in paths


@pytest.mark.parametrize(("url", "is_direct"), [("http://127.0.0.1:1", True), (None, False)])
def test_this_machine_is_reached_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str | None, *, is_direct: bool
) -> None:
    from botocore.config import Config

    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
    client = connect(make_session(), "s3", Config(), url)
    proxies = client._endpoint.http_session._proxy_config._proxies
    assert (not proxies) == is_direct
