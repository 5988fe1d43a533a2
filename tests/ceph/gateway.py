"""Ceph's S3 gateway: a monitor, a store of objects in memory, and `radosgw`, on loopback."""

import contextlib
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from gradshard.local_engine.process_control import free_port

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw")
SECONDS = 120
ACCESS_KEY, SECRET_KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
MEMORY_BYTES = 2 * 1024**3
CONFIGURATION = """
[global]
fsid = {fsid}
keyring = {folder}/keyring
mon host = [v2:127.0.0.1:{monitor}]
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {memory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 2
osd crush chooseleaf type = 0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = {folder}
crash dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
pid file =
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[int]:
    """Run the gateway with one user; give its port. Its files and logs are in ``folder``."""
    fsid, monitor, port = str(uuid.uuid4()), free_port(), free_port()
    (folder / "ceph.conf").write_text(
        CONFIGURATION.format(
            fsid=fsid, folder=folder, monitor=monitor, port=port, memory=MEMORY_BYTES
        )
    )
    (folder / "osd").mkdir()
    ceph = _Ceph(folder)
    with contextlib.ExitStack() as running:
        _make_keys(ceph)
        address = f"[v2:127.0.0.1:{monitor}]"
        ceph.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "monmap")
        ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        running.enter_context(ceph.daemon("ceph-mon", "-i", "a"))
        osd = str(uuid.uuid4())
        ceph.run("ceph", "osd", "new", osd)
        ceph.run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        ceph.run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
        running.enter_context(ceph.daemon("ceph-osd", "-i", "0"))
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        ceph.run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)
        running.enter_context(ceph.daemon("radosgw", "-n", "client.admin"))
        _await_answer(port, folder)
        yield port


class _Ceph:
    """Ceph's programs, with a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, program: str, *arguments: str) -> None:
        """Run a program to its end."""
        done = subprocess.run(
            [program, "--conf", self.folder / "ceph.conf", *arguments],
            cwd=self.folder,
            timeout=SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr[-2000:]}"

    @contextlib.contextmanager
    def daemon(self, program: str, *arguments: str) -> Iterator[None]:
        """Run a program until the context ends."""
        command = [program, "--conf", str(self.folder / "ceph.conf"), "-f", *arguments]
        with (self.folder / f"{program}.out").open("w") as out:
            process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out)
        try:
            yield
        finally:
            # It holds nothing that anybody needs again.
            process.kill()
            process.wait()


def _make_keys(ceph: _Ceph) -> None:
    everything, add = ("--cap", "mon", "allow *", "--cap", "osd", "allow *"), "ceph-authtool"
    ceph.run(add, "keyring", "--create-keyring", "--gen-key", "-n", "mon.", *everything)
    ceph.run(add, "keyring", "--gen-key", "-n", "client.admin", *everything)
    ceph.run(add, "keyring", "--gen-key", "-n", "osd.0", *everything)


def _await_answer(port: int, folder: Path) -> None:
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/"),
        ):
            return
        time.sleep(0.2)
    raise AssertionError(f"radosgw did not start: {(folder / 'radosgw.out').read_text()[-2000:]}")
