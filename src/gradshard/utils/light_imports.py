"""Keeps botocore and rich from importing large libraries that the command has no use for.

They import them wherever they are installed, as they are beside `sam`, and do without them
elsewhere. Importing them takes about a fifth of the time of a short command.
"""

import os
import sys
from pathlib import Path

UNUSED = ("attr", "urllib3.contrib.pyopenssl")
"""rich prints classes of attrs. botocore takes only the standard library's SSLContext from
urllib3's module for pyOpenSSL, and finds it elsewhere, too."""

LOGIN_ONLY = "awscrt"
"""Has signatures that no request here asks for. Credentials of ``aws login`` need it, and transfers
import its checksums themselves (:mod:`gradshard.utils.crc64`)."""

_LOGIN_SETTING = b"login_session"

_CONFIG_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
"""The files in which botocore finds profiles, by the variable that names another one."""


def hide_unused_libraries() -> None:
    """Hide the libraries from this process; call it before botocore and rich are imported."""
    names = UNUSED if _has_login_session() else (*UNUSED, LOGIN_ONLY)
    for name in names:
        # A module that is None there cannot be imported:
        # https://docs.python.org/3/reference/import.html#the-module-cache
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def show_unused_libraries() -> None:
    """Make the libraries importable again, for a package that needs one of them itself."""
    for name in (*UNUSED, LOGIN_ONLY):
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


def _has_login_session() -> bool:
    """Whether a file of the AWS configuration mentions a session of ``aws login``."""
    for variable, default in _CONFIG_FILES.items():
        try:
            path = Path(os.environ.get(variable) or default).expanduser()
            if _LOGIN_SETTING in path.read_bytes():
                return True
        except (OSError, RuntimeError):  # no such file, or no home folder
            continue
    return False
