"""The local engines of this user: their addresses, processes and credentials.

Each engine is known by its port and keeps its files (process id, key, log, build, the functions'
files) in one folder of the user's cache.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session

from gradshard.aws.boto_client import connect, make_session
from gradshard.deployment.defaults import DEFAULT_PORT, STACK
from gradshard.local_engine.access_gate import read_credentials
from gradshard_core.errors import EngineError
from gradshard_core.s3.sigv4 import Credentials

REGION: Final = "us-east-1"
EPHEMERAL: Final = "ephemeral"
"""A file in an engine's folder: there if it keeps nothing."""


@dataclass(frozen=True)
class Engine:
    """A local engine, running or not.

    Attributes
    ----------
    port
        The port it listens on.
    pid
        The process id of the engine, or None if it does not run.
    folder
        The folder of its files.
    deployed
        Whether the application was deployed to it.
    ephemeral
        Whether it keeps objects in memory, and nothing when it ends.
    """

    port: int
    pid: int | None
    folder: Path
    deployed: bool
    ephemeral: bool = False

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self.pid is not None

    @property
    def url(self) -> str:
        """The endpoint, for every AWS service."""
        return url_of("127.0.0.1", self.port)

    @property
    def port_option(self) -> str:
        """The option that selects this engine in a command; empty for the default port."""
        return f" --port {self.port}" if self.port != DEFAULT_PORT else ""

    @property
    def start_command(self) -> str:
        """The command that starts it."""
        return f"gradshard local up{self.port_option}"

    @property
    def stop_command(self) -> str:
        """The command that stops it."""
        return f"gradshard local down{self.port_option}"

    @property
    def kept(self) -> Path:
        """The folder of its objects and its application, which outlive its process."""
        return kept_folder_of(self.port)

    @property
    def state(self) -> Path:
        """The folder of what lasts as long as the application on it."""
        return self.folder if self.ephemeral else self.kept

    @property
    def log(self) -> Path:
        """The file of the engine's output. Functions write to its CloudWatch Logs instead."""
        return self.folder / "engine.log"

    @property
    def container_settings(self) -> Path:
        """Settings of `sam local invoke`, if it was started with ``bind``."""
        return self.folder / "samconfig.toml"

    @property
    def credentials_file(self) -> Path:
        """The file of its key, which was made when it started; only its user can read it."""
        return self.folder / "credentials.json"

    @property
    def credentials(self) -> Credentials:
        """Its key, without which it rejects every request.

        Raises
        ------
        EngineError
            The engine has no key: it does not run, or an older gradshard started it.
        """
        try:
            return read_credentials(self.credentials_file)
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"the engine on port {self.port} has no key in {self.credentials_file}: "
                f"`{self.stop_command}`, then `{self.start_command}`"
            ) from error

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make every AWS client use it, and only it, and no proxy."""
        return {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": hosts_without_proxy(),
            "no_proxy": hosts_without_proxy(),
        }


def status(port: int = DEFAULT_PORT) -> Engine:
    """Return the engine of a port, running or not.

    Parameters
    ----------
    port
        The engine's port.

    Returns
    -------
    Engine
        The engine; its `pid` is None when it is not running.
    """
    folder = folder_of(port)
    pid = _read_pid(folder, port)
    ephemeral = (folder / EPHEMERAL).exists()
    state = folder if ephemeral else kept_folder_of(port)
    deployed = pid is not None and (state / "deployed").exists()
    return Engine(port=port, pid=pid, folder=folder, deployed=deployed, ephemeral=ephemeral)


def running() -> list[Engine]:
    """Return this user's running engines, by port."""
    ports = (folder.name.removeprefix("engine-") for folder in cache_folder().glob("engine-*/"))
    engines = [status(int(port)) for port in ports if port.isdecimal()]
    return sorted((engine for engine in engines if engine.running), key=lambda engine: engine.port)


def find(port: int = DEFAULT_PORT) -> Engine:
    """Return the engine of a port, which must run.

    Raises
    ------
    EngineError
        The engine does not run. The error names the engines that do.
    """
    engine = status(port)
    if engine.running:
        return engine
    others = elsewhere()
    advice = f"{others}; or " if others else ""
    raise EngineError(
        f"no local engine is running on port {port}: {advice}start it with `{engine.start_command}`"
    )


def elsewhere() -> str:
    """Return a text that says on which ports this user's engines run; empty if none does."""
    options = [f"--port {engine.port}" for engine in running()]
    if not options:
        return ""
    return f"{'one runs' if len(options) == 1 else 'others run'} with {', '.join(options)}"


def has_application(engine: Engine) -> bool:
    """Return whether a running engine has the application, which a reset deletes."""
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    try:
        formation.describe_stacks(StackName=STACK)
    except ClientError:
        return False
    return True


def session(engine: Engine) -> Session:
    """Make a session with the engine's key and without the user's settings."""
    settings = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    return make_session(region=REGION, credentials=engine.credentials, variables=settings)


def url_of(address: str, port: int) -> str:
    """Return the URL of an engine that listens on an address."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def cache_folder() -> Path:
    """Return the folder of what the engines could make again, which need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gradshard"


def folder_of(port: int) -> Path:
    """Return the folder of a port's engine, which need not exist."""
    return cache_folder() / f"engine-{port}"


def kept_folder_of(port: int) -> Path:
    """Return the folder of what a port's engine keeps, which need not exist."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "gradshard" / f"engine-{port}"


def hosts_without_proxy() -> str:
    """Return the hosts that need no proxy: the user's, and this machine."""
    said = [os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    hosts = [host.strip() for host in ",".join(said).split(",")]
    if "*" in hosts:
        return "*"
    return ",".join(dict.fromkeys(filter(None, [*hosts, "127.0.0.1", "localhost"])))


def _read_pid(folder: Path, port: int) -> int | None:
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_alive(pid, port) else None


def _is_alive(pid: int, port: int) -> bool:
    """Return whether a process runs and is this engine, not another that got its id later."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # collects one that this process started and that has ended
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"\0gradshard.local_engine.server\0--port\0{port}\0".encode() in command
