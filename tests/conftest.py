"""The local engine, started once for all tests that need it, on a free port."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import settings

from gradshard.aws.boto_client import default_session
from gradshard.local_engine import lifecycle
from gradshard.local_engine.lifecycle import Engine

# The same examples in every run, so that a change fails for its own mistakes only;
# `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# What the template gives every function.
os.environ["GRADSHARD_STACK"] = "stack"
# The engine has none of this name, so a round that tests go through by hand deletes no deadline.
os.environ["GRADSHARD_SCHEDULE_GROUP"] = "deadlines"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the short files last, so that parallel workers end at about the same time."""
    items.sort(key=lambda item: "unit" in item.path.parts)


# The modules and items that are collected stay until the end: Python need not look for cycles among
# them, neither now nor in each of its later searches.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector work again, on what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def share_builds(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[Path], None]:
    """Gives a cache folder the builds of the application that this run of the tests has made."""
    # A worker's own folder of temporary files is one of those of the run.
    run = tmp_path_factory.getbasetemp()
    builds = (run if worker_id == "master" else run.parent) / "builds"
    builds.mkdir(exist_ok=True)

    def share(cache: Path) -> None:
        folder = cache / "gradshard"
        folder.mkdir(parents=True)
        (folder / "builds").symlink_to(builds)

    return share


@pytest.fixture(scope="session")
def engine(
    tmp_path_factory: pytest.TempPathFactory, share_builds: Callable[[Path], None]
) -> Iterator[Engine]:
    """A running engine with application and mask keeper deployed by `sam`; boto3 talks to it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        share_builds(cache)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        engine = lifecycle.up(0, bind=_docker_address(), keeper=True, owner=os.getpid())
        for name, value in engine.environment.items():
            patch.setenv(name, value)
        # The default sessions keep the credentials that they found first.
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        default_session.cache_clear()
        # It finds the engine's now; a later test may have set others while it runs.
        default_session().get_credentials()
        yield engine
        lifecycle.down(engine.port, delete=True)
    default_session.cache_clear()


@pytest.fixture(scope="session")
def outputs(engine: Engine) -> dict[str, str]:
    """The deployed stack's outputs."""
    [stack] = boto3.client("cloudformation").describe_stacks(StackName="gradshard")["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def _docker_address() -> str | None:
    """Where containers reach the engine, if there is Docker."""
    bridge = Path("/sys/class/net/docker0")
    return "172.17.0.1" if bridge.exists() else None
