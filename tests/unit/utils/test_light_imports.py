"""What the command's process imports, and what it hides from botocore and rich."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from gradshard.utils.light_imports import hide_unused_libraries
hide_unused_libraries()
{}
print(*(name for name, module in sys.modules.items() if module))
"""


def loaded(tmp_path: Path, lines: str, **environment: str) -> set[str]:
    """Run lines in a process that hides the libraries; return the modules that it loaded."""
    files = {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(lines)],
        env=os.environ | files | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_unused_libraries_are_not_loaded(tmp_path: Path) -> None:
    lines = "import botocore.httpsession, botocore.session, rich.console, rich.table, rich.live"
    lines += "; assert 'awscrt' in sys.modules"
    found = loaded(tmp_path, lines)
    assert "botocore.credentials" in found
    assert not {"OpenSSL", "cryptography", "awscrt", "attr"} & found


def test_what_needs_a_hidden_library_has_it(tmp_path: Path) -> None:
    """As dp-accounting needs attrs, in the command ``gradshard model budget``."""
    (tmp_path / "attr.py").touch()
    (tmp_path / "dp_accounting.py").write_text("import attr\n")
    lines = "import rich.console; from gradshard.client.privacy_accounting import is_installed\n"
    lines += "assert is_installed()"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert {"attr", "dp_accounting"} <= loaded(tmp_path, lines, PYTHONPATH=path)


@pytest.mark.parametrize("file", ["config", "credentials"])
def test_a_login_session_keeps_the_library_that_it_needs(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("[profile p]\nlogin_session = arn:aws:iam::1:user/u\n")
    assert loaded(tmp_path, "assert 'awscrt' not in sys.modules")


def test_a_home_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert loaded(tmp_path, "", AWS_CONFIG_FILE="~nobody-at-all/config")


def test_tls_is_that_of_the_standard_library(tmp_path: Path) -> None:
    lines = "import ssl, botocore.httpsession as h; assert h.SSLContext is ssl.SSLContext"
    assert loaded(tmp_path, lines)


def test_showing_a_round_that_waits_loads_neither_numpy_nor_boto3(tmp_path: Path) -> None:
    lines = "import gradshard.cli.show, gradshard.client.federation, gradshard.client.round_status"
    assert not {"numpy", "boto3", "s3transfer"} & loaded(tmp_path, lines)
