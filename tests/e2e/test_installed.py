"""The built wheel in an environment of its own, used from an empty folder: no checkout in reach."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gradshard.deployment import application_sources
from tests import reference
from tests.docs.pages import ROOT, RUN, blocks
from tests.docs.session import Session, port_shim

pytestmark = pytest.mark.e2e

SECONDS = 240
TOPIC = "arn:aws:sns:us-east-1:000000000000:on-call"
BOUNDARY = "arn:aws:iam::aws:policy/PowerUserAccess"


@dataclass(frozen=True)
class Installed:
    """The environment that has the wheel, and the folder of whoever uses it."""

    python: Path
    folder: Path
    environment: dict[str, str]

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands in the empty folder."""
        name, *arguments = map(str, command)
        return subprocess.run(
            [self.python.with_name(name), *arguments],
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def said(self, *arguments: object, **variables: str) -> str:
        """Run `gradshard`, which must succeed."""
        done = self.run("gradshard", *arguments, **variables)
        assert done.returncode == 0, done
        return done.stdout


def made(*command: object) -> None:
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory, share_builds: Callable[[Path], None]
) -> Installed:
    top = tmp_path_factory.mktemp("installed")
    # The wheel has the files of the checkout, and `gradshard deploy` below builds them anew.
    share_builds(top / "cache")
    python = top / "venv" / "bin" / "python"
    made(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", top)
    [wheel] = top.glob("*.whl")
    # With pip, which `sam build` runs.
    made(sys.executable, "-m", "venv", top / "venv")
    uv = Path(sys.executable).with_name("uv")
    made(uv, "pip", "install", "--quiet", "--python", python, f"{wheel}[local]")
    folder = top / "empty"
    folder.mkdir()
    # The machine's settings for pip stay, not those of other tests' engine or of this environment.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    environment |= {
        "PATH": "/usr/bin:/bin",
        "XDG_CACHE_HOME": str(top / "cache"),
        "XDG_DATA_HOME": str(top / "data"),
        "XDG_CONFIG_HOME": str(top / "config"),
        "NO_PROXY": "127.0.0.1,localhost",
        "SAM_CLI_TELEMETRY": "0",
    }
    return Installed(python, folder, environment)


@pytest.fixture(scope="module")
def port(installed: Installed) -> Iterator[int]:
    """A local engine that the installed command started."""
    said = installed.said("local", "up", "--port", 0)
    url = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    assert url, said
    port = int(url[1])
    yield port
    assert installed.said("local", "down", "--port", port) == (
        f"the engine on port {port} was stopped\n"
    )


def status(installed: Installed, port: int) -> dict[str, Any]:
    done = installed.run("gradshard", "local", "status", "--port", port, "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if document["deployed"] else 1)
    return document


def test_the_command_and_the_library_are_there(installed: Installed) -> None:
    assert re.fullmatch(r"gradshard, version \d+\.\d+\.\d+\n", installed.said("--version"))
    plan = json.loads(installed.said("plan", "--size", "512MB", "--clients", 20, "--json"))
    assert plan["choice"]["shards"] >= 1
    asked = installed.run("python", "-c", "import gradshard; print(gradshard.Federation)")
    assert "gradshard.client.federation.Federation" in asked.stdout, asked
    typed = "import gradshard, pathlib; print((pathlib.Path(gradshard.__path__[0]) / 'py.typed'))"
    assert Path(installed.run("python", "-c", typed).stdout.strip()).is_file()


def test_the_wheel_has_exactly_the_deployed_files_of_the_checkout(installed: Installed) -> None:
    asked = installed.run(
        "python",
        "-c",
        "from gradshard.deployment import application_sources as a\n"
        "print(a.checkout(), a.fingerprint())",
    )
    assert asked.stdout == f"None {application_sources.fingerprint()}\n", asked


def test_getting_started_as_it_stands(installed: Installed, port: int, tmp_path: Path) -> None:
    commands = installed.python.parent
    session = Session(
        tmp_path / "empty",
        (port_shim(tmp_path / "commands", commands / "gradshard", port), commands),
        port=port,
        python=installed.python,
        variables=installed.environment,
    )
    for block in blocks(ROOT / "docs" / "getting-started.md"):
        if block.language in RUN and not block.not_run:
            session.run(block)


def test_a_round_without_a_checkout(installed: Installed, port: int, tmp_path: Path) -> None:
    assert status(installed, port)["deployed"] is True
    local = ("--local", "--port", port)
    installed.said("open", "r1", "--client", "a", "--client", "b", *local)
    rng = np.random.default_rng(5)
    updates = [{"w": reference.random_tensor(rng, "F32", (40, 30))} for _ in "ab"]
    for client, update in zip("ab", updates, strict=True):
        save_file(update, tmp_path / client)
        installed.said("submit", "r1", client, tmp_path / client, "--samples", 3, *local)
    assert "completed" in installed.said("watch", "r1", *local)
    installed.said("fetch", "r1", "-o", "average.safetensors", *local)
    average = load_file(installed.folder / "average.safetensors")
    assert average["w"].tobytes() == reference.average(updates, [3, 3])["w"].tobytes()


def told_of_alarms(aws: Mapping[str, str]) -> set[str]:
    """The topics of the alarms of stack `mine`, without what the engine adds to a name."""
    session = boto3.Session(
        aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    )
    alarms = session.client("cloudwatch", endpoint_url=aws["AWS_ENDPOINT_URL"])
    return {
        re.sub(r"(mine-AlarmTopic)-.*", r"\1", action)
        for alarm in alarms.describe_alarms(AlarmNamePrefix="mine-")["MetricAlarms"]
        for action in alarm["AlarmActions"]
    }


def test_deploying_from_an_empty_folder_takes_sams_options(installed: Installed, port: int) -> None:
    lines = installed.said("local", "env", "--port", port).splitlines()
    aws = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    deployed = installed.run(
        *("gradshard", "deploy", "--stack-name", "mine", "--no-confirm-changeset"),
        *("--parameter-overrides", "Architecture=x86_64", "AggregatorMemory=256"),
        f"PermissionsBoundaryArn={BOUNDARY}",
        *(f"AlarmTopicArn={TOPIC}", "AlarmEmail=on-call@example.org"),
        **aws,
    )
    assert deployed.returncode == 0, deployed
    assert "stack mine is deployed to us-east-1\n" in deployed.stdout
    assert "sam delete --stack-name mine --region us-east-1 --no-prompts\n" in deployed.stdout
    # The region is known from now on.
    del aws["AWS_DEFAULT_REGION"]
    # The layer is for the processor that the functions are for.
    built = re.findall(r"architecture: (\w+)", deployed.stderr + deployed.stdout)
    assert set(built) == {"x86_64"}, deployed
    assert told_of_alarms(aws) == {TOPIC, "arn:aws:sns:us-east-1:000000000000:mine-AlarmTopic"}
    asked = ("plan", "--stack", "mine", "--size", "1MB", "--clients", 2, "--json")
    plan = json.loads(installed.said(*asked, **aws))
    assert (plan["architecture"], plan["choice"]["memory_mb"]) == ("x86_64", 256)
