"""The application on one machine: an engine process, and the same template deployed to it by `sam`.

Each engine is known by its port and keeps everything it has (its process id, its key, its log, what
was built, its functions' files) in one folder of the user's cache, which `down` removes. Objects
live in the engine's memory and go with it.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from gradshard.deployment import application
from gradshard.deployment.gate import read_credentials
from gradshard.utils.atomic_file import add_path_to_errors
from gradshard_core.errors import EngineError
from gradshard_core.s3.boto_client import connect
from gradshard_core.s3.sigv4 import Credentials, sign

DEFAULT_PORT: Final = 4566
REGION: Final = "us-east-1"
STACK: Final = "gradshard"
"""The stack's name, as in the application's `samconfig.toml`."""

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """A local engine, running or not.

    Attributes
    ----------
    port
        The port it listens on.
    pid
        Its process id, or None when it is not running.
    folder
        Where it keeps its files while it runs.
    deployed
        Whether the application was deployed to it.
    """

    port: int
    pid: int | None
    folder: Path
    deployed: bool

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self.pid is not None

    @property
    def url(self) -> str:
        """Its endpoint, for every AWS service."""
        return _url("127.0.0.1", self.port)

    @property
    def port_option(self) -> str:
        """What a command's line needs to mean this engine: nothing, at the default port."""
        return f" --port {self.port}" if self.port != DEFAULT_PORT else ""

    @property
    def starting(self) -> str:
        """The command that starts it."""
        return f"gradshard local up{self.port_option}"

    @property
    def stopping(self) -> str:
        """The command that stops it."""
        return f"gradshard local down{self.port_option}"

    @property
    def log(self) -> Path:
        """What it wrote; functions write to CloudWatch Logs, which it plays too."""
        return self.folder / "engine.log"

    @property
    def container_settings(self) -> Path:
        """Settings of `sam local invoke`, if it was started with ``bind``."""
        return self.folder / "samconfig.toml"

    @property
    def credentials_file(self) -> Path:
        """Where its key is, which was made when it started; for its user alone to read."""
        return self.folder / "credentials.json"

    @property
    def credentials(self) -> Credentials:
        """Its key, without which it answers nothing.

        Raises
        ------
        EngineError
            It has none: it is not running, or an older gradshard started it.
        """
        try:
            return read_credentials(self.credentials_file)
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"the engine on port {self.port} has no key in {self.credentials_file}: "
                f"`{self.stopping}`, then `{self.starting}`"
            ) from error

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make any AWS client talk to it, to nothing else, and through no proxy."""
        return {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": _without_proxy(),
            "no_proxy": _without_proxy(),
        }


def status(port: int = DEFAULT_PORT) -> Engine:
    """Look at the engine of a port.

    Parameters
    ----------
    port
        The engine's port.

    Returns
    -------
    Engine
        The engine; its `pid` is None when it is not running.
    """
    folder = _folder(port)
    pid = _read_pid(folder)
    deployed = pid is not None and (folder / "deployed").exists()
    return Engine(port=port, pid=pid, folder=folder, deployed=deployed)


def running() -> list[Engine]:
    """Return this user's engines that run, by port."""
    ports = (folder.name.removeprefix("engine-") for folder in _cache().glob("engine-*/"))
    engines = [status(int(port)) for port in ports if port.isdecimal()]
    return sorted((engine for engine in engines if engine.running), key=lambda engine: engine.port)


def find(port: int = DEFAULT_PORT) -> Engine:
    """Return the engine of a port, which must run.

    Raises
    ------
    EngineError
        It does not; the error names those that do.
    """
    engine = status(port)
    if engine.running:
        return engine
    others = elsewhere()
    advice = f"{others}; or " if others else ""
    raise EngineError(
        f"no local engine is running on port {port}: {advice}start it with `{engine.starting}`"
    )


def elsewhere() -> str:
    """Say on which ports this user's engines run; empty if none does."""
    options = [f"--port {engine.port}" for engine in running()]
    if not options:
        return ""
    return f"{'one runs' if len(options) == 1 else 'others run'} with {', '.join(options)}"


def has_application(engine: Engine) -> bool:
    """Ask a running engine whether it has the application, which a reset makes it forget."""
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    try:
        formation.describe_stacks(StackName=STACK)
    except ClientError:
        return False
    return True


def session(engine: Engine) -> boto3.Session:
    """Make a session that knows the engine's key and none of the user's settings."""
    settings = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    return boto3.Session(
        aws_access_key_id=engine.credentials.access_key,
        aws_secret_access_key=engine.credentials.secret_key,
        region_name=REGION,
        botocore_session=botocore.session.Session(session_vars=settings),
    )


def up(
    port: int = DEFAULT_PORT, *, bind: str | None = None, progress: Progress | None = None
) -> Engine:
    """Start an engine unless it runs, and deploy the application unless what it has is the same.

    Parameters
    ----------
    port
        The port to listen on; 0 for any free one.
    bind
        One more address to listen on beside 127.0.0.1, such as Docker's 172.17.0.1. Every machine
        and container that reaches the address can send requests, over plain HTTP; anyone who has
        the engine's key can run code as this user.
    progress
        Told what is being done, one line at a time.

    Returns
    -------
    Engine
        The running engine.

    Raises
    ------
    EngineError
        When the engine cannot run here, the port is taken, a command fails, or the engine runs
        already, without ``bind``.
    DeployError
        When `sam`, or what it builds with, is not installed.
    """
    _check_machine()
    tell = progress or _say_nothing
    port = port or _free_port()
    with _alone(port):
        engine = status(port)
        if not engine.running:
            tell(f"starting the engine on port {engine.port}")
            _start(engine, bind)
        elif bind and not _answers(engine, bind):
            raise EngineError(
                f"the engine on port {engine.port} runs already and does not listen on {bind}: "
                f"`{engine.stopping}` first"
            )
        fingerprint = application.fingerprint()
        deployed = engine.folder / "deployed"
        is_same = deployed.exists() and deployed.read_text() == fingerprint
        if not (is_same and has_application(engine)):
            deployed.unlink(missing_ok=True)
            with application.folder() as sources:
                tell("building the application")
                _sam(engine, sources, "build", "--build-dir", str(engine.folder / "build"))
                tell("deploying the application")
                built = engine.folder / "build" / "template.yaml"
                _sam(engine, sources, "deploy", "--template-file", str(built))
            deployed.write_text(fingerprint)
        if bind:
            _write_settings(engine, bind)
    tell(f"ready at {engine.url}")
    return status(engine.port)


def down(port: int = DEFAULT_PORT) -> bool:
    """Stop an engine with its functions and remove its files.

    Parameters
    ----------
    port
        The engine's port.

    Returns
    -------
    bool
        Whether there was one running.
    """
    engine = status(port)
    if engine.pid is not None:
        _stop(engine.pid)
    shutil.rmtree(engine.folder, ignore_errors=True)
    return engine.running


def _check_machine() -> None:
    """Check that the functions can run here, before anything is started."""
    if sys.platform != "linux":
        raise EngineError(
            "the local engine runs functions with the layer's Linux libraries, not on "
            f"{sys.platform}: use Linux, or the container of docs/getting-started.md"
        )
    version = platform.python_version()
    if not version.startswith(f"{application.RUNTIME}."):
        raise EngineError(
            f"the local engine runs the functions with its own interpreter, Python {version}, and "
            f"they need {application.RUNTIME}: install gradshard[local] under that"
        )
    if importlib.util.find_spec("ministack") is None:
        raise EngineError(
            "the local engine is not installed: `pip install 'gradshard[local]'` installs it"
        )
    application.find_sam()
    application.check_builder()


def _say_nothing(line: str) -> None:
    pass


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gradshard"


def _folder(port: int) -> Path:
    return _cache() / f"engine-{port}"


@contextlib.contextmanager
def _alone(port: int) -> Iterator[None]:
    """Wait until nobody else starts the engine of a port, or deploys to it."""
    import fcntl  # which Windows has not, where this module is for clients

    folder = _folder(port)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(engine: Engine, bind: str | None) -> None:
    for address, option in (("127.0.0.1", "--port"), (bind, "--bind")):
        if address:
            _check_address(address, engine.port, option)
    shutil.rmtree(engine.folder, ignore_errors=True)  # of an engine that was killed
    temporary = engine.folder / "tmp"
    temporary.mkdir(parents=True)
    engine.folder.chmod(0o700)
    make_credentials(engine.credentials_file)
    command = [
        sys.executable,
        "-m",
        "gradshard.deployment.engine_process",
        "--port",
        str(engine.port),
    ]
    command += ["--credentials", str(engine.credentials_file)]
    command += ["--bind", bind] if bind else []
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # A session of its own: it outlives this process, and with its functions is one group to stop.
    pid = os.posix_spawn(
        sys.executable,
        command,
        _child_environment(engine) | {"TMPDIR": str(temporary)},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(engine.log), log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    try:
        with add_path_to_errors(engine.folder):
            (engine.folder / "pid").write_text(str(pid))
    except OSError:
        _stop(pid)
        raise
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(engine):
        # Not _is_alive: a process just spawned has no command line yet.
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            tail = _tail(engine.log)
            down(engine.port)
            raise EngineError(f"the engine did not start:\n{tail}")
        time.sleep(0.1)


def _check_address(address: str, port: int, option: str) -> None:
    """Check that an engine could listen there, and nowhere else."""
    if address in {"0.0.0.0", "::"}:  # noqa: S104 - to reject it
        raise EngineError(
            f"{address} is every address of this machine: name the one that others are to reach, "
            f"with {option}"
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server does: the closed connections of an engine just stopped do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise EngineError(
                f"port {port} of {address} cannot be used ({error.strerror}): choose another with "
                f"{option}"
            ) from error


def _stop(pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if not _group_is_alive(pid):
                return
            time.sleep(0.05)
    raise EngineError(f"the engine's processes (group {pid}) cannot be stopped")


def _sam(engine: Engine, sources: Path, command: str, *arguments: str) -> None:
    """Run one `sam` command with the application's `local` environment against the engine."""
    config = sources / "samconfig.toml"
    line = [application.find_sam(), command]
    line += ["--config-file", str(config), "--config-env", "local", *arguments]
    line += ["--parameter-overrides", *_parameters(config, engine)]
    with (engine.folder / "sam.log").open("a") as log:
        log.write(f"$ {' '.join(line)}\n")
        log.flush()
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            line,
            cwd=sources,
            env=_child_environment(engine),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise EngineError(
            f"`sam {command}` failed; the end of {log.name}:\n{_tail(Path(log.name))}"
        )


def _write_settings(engine: Engine, address: str) -> None:
    """Write what `sam local invoke` needs to run a function in a container, with this engine.

    A container has this machine's processor, reaches the engine at another address than this
    machine, and its function needs the variables that the deployed one has.
    """
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    functions = connect(session(engine), "lambda", Config(), engine.url)
    at = _url(address, engine.port)
    variables = {}
    for resource in formation.describe_stack_resources(StackName=STACK)["StackResources"]:
        if resource["ResourceType"] == "AWS::Lambda::Function":
            name = resource["PhysicalResourceId"]
            found = functions.get_function_configuration(FunctionName=name)["Environment"]
            variables[resource["LogicalResourceId"]] = found["Variables"] | {"AWS_ENDPOINT_URL": at}
    file = engine.folder / "variables.json"
    file.write_text(json.dumps(variables, indent=2))
    with application.folder() as sources:
        parameters = _parameters(sources / "samconfig.toml", engine, at)
    settings = {
        "template_file": str(engine.folder / "build" / "template.yaml"),
        "env_vars": str(file),
        "parameter_overrides": parameters,
    }
    # JSON's strings and lists are TOML's too.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    head = ["version = 0.1", "[default.local_invoke.parameters]"]
    engine.container_settings.write_text("\n".join([*head, *lines, ""]))


def _parameters(config: Path, engine: Engine, endpoint: str = "") -> list[str]:
    """Return the environment's template parameters, with this machine's processor and engine.

    ``endpoint`` is where functions reach the engine, if not where this machine does.
    """
    environment = tomllib.loads(config.read_text())["local"]["global"]["parameters"]
    parameters = dict(pair.split("=", 1) for pair in environment["parameter_overrides"])
    arm = platform.machine() in {"aarch64", "arm64"}
    parameters |= {
        "Architecture": "arm64" if arm else "x86_64",
        "EndpointUrl": endpoint or engine.url,
    }
    return [f"{name}={value}" for name, value in parameters.items()]


def _child_environment(engine: Engine) -> dict[str, str]:
    # None of the user's AWS variables: a profile or a session token would win over these.
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    given = {"PATH": application.search_path(), "SAM_CLI_TELEMETRY": "0"}
    return own | engine.environment | given


def _without_proxy() -> str:
    """Return what goes through no proxy: what the user says, and this machine."""
    said = [os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    hosts = [host.strip() for host in ",".join(said).split(",")]
    if "*" in hosts:
        return "*"
    return ",".join(dict.fromkeys(filter(None, [*hosts, "127.0.0.1", "localhost"])))


def _read_pid(folder: Path) -> int | None:
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_alive(pid) else None


def _is_alive(pid: int) -> bool:
    """Whether a process runs and is an engine, not another that got its id later."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # collects one that this process started and that has ended
    try:
        return b"gradshard.deployment.engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _group_is_alive(group: int) -> bool:
    """Whether a process of the group still runs; one that ended uncollected (Z) does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


def make_credentials(file: Path) -> None:
    """Write a new engine's key to a file that only its user may read."""
    record = {
        "access_key": f"LOCAL{secrets.token_hex(8).upper()}",
        "secret_key": secrets.token_urlsafe(30),
    }
    file.touch(0o600, exist_ok=False)
    file.write_text(json.dumps(record))


def answers(port: int, credentials: Credentials, address: str = "127.0.0.1") -> bool:
    """Ask whether an engine with this key listens on a port and is ready, through no proxy."""
    host = urlsplit(_url(address, port)).netloc
    target, headers = sign(
        "GET",
        host,
        "/_ministack/ready",
        {},
        {},
        b"",
        region=REGION,
        credentials=credentials,
        now=datetime.now(UTC),
    )
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _answers(engine: Engine, address: str = "127.0.0.1") -> bool:
    return answers(engine.port, engine.credentials, address)


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
