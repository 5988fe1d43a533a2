"""Check the pinned dependencies: against pyproject.toml, the index, and known vulnerabilities.

If the index or the database does not answer, the program says so and exits with 3. `make audit`
then fails. `.ci/run` goes on, because an outage of others should not stop a change.
"""

import argparse
import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from json import loads
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip_requirements_parser import RequirementsFile

ROOT: Final = Path(__file__).parent
DEV, LAYER = "requirements-dev.txt", "layers/gradshard/requirements.txt"
KEEPER = "layers/keeper/requirements.txt"
FOUND, NOT_AUDITED = 1, 3
PATIENCE_SECONDS: Final = 180
"""Seconds that the index, and the database, may take."""

Pins = dict[str, tuple[str, frozenset[str]]]
"""Each release's version and hashes, by its name."""


class NotAuditedError(Exception):
    """The index or the database did not answer; the text says which, and why."""


def main(options: Sequence[str], root: Path = ROOT) -> int:
    """Run all checks and print their findings.

    Parameters
    ----------
    options
        Options of pip-audit, such as ``--ignore-vuln``.
    root
        The folder of the checkout.

    Returns
    -------
    int
        0 if all is well, :data:`FOUND`, or :data:`NOT_AUDITED` if a check could not run.
    """
    files = [root / DEV, root / LAYER, root / KEEPER]
    looks: dict[str, Callable[[], list[str]]] = {
        "the pins agree with pyproject.toml, with each other and with what is installed": (
            lambda: disagreements(root, *map(read_pins, files))
        ),
        "no release is yanked, and the index has the pinned files": (
            lambda: changes(read_pins(*files))
        ),
        "no known vulnerability": lambda: vulnerabilities(files, options),
    }
    status = 0
    for claim, look in looks.items():
        try:
            found = look()
        except NotAuditedError as error:
            print(f"!!!!!!! NOT AUDITED, and so not known to be true: {claim}\n        {error}")
            status = status or NOT_AUDITED
            continue
        print(f"{'FAILED ' if found else 'audited'} {claim}")
        for finding in found:
            print(f"        {finding}")
        status = FOUND if found else status
    return status


def read_pins(*files: Path) -> Pins:
    """Read requirements files that `make requirements` wrote."""
    return {
        canonicalize_name(pin.name): (pin.get_pinned_version, frozenset(pin.hash_options))
        for file in files
        for pin in RequirementsFile.from_file(str(file)).requirements
    }


def disagreements(root: Path, dev: Pins, layer: Pins, keeper: Pins) -> list[str]:
    """Return the contradictions among the pins; this sends no request."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = project["project"]["dependencies"]
    wanted += project["project"]["optional-dependencies"]["local"]
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    return [
        *(
            f"{name} is not the same in {DEV} and {file}"
            for file, pins in ((LAYER, layer), (KEEPER, keeper))
            for name in sorted(dev.keys() & pins.keys())
            if dev[name] != pins[name]
        ),
        *_forbidden(DEV, dev, [*wanted, *groups["dev"], *groups["docs"]]),
        *_forbidden(LAYER, layer, groups["layer"]),
        *_forbidden(KEEPER, keeper, groups["keeper"]),
        *(checked.stdout.splitlines() if checked.returncode else ()),
    ]


def _forbidden(file: str, pins: Pins, wanted: Iterable[str]) -> list[str]:
    found = []
    for requirement in map(Requirement, wanted):
        version, hashes = pins.get(canonicalize_name(requirement.name), ("", ()))
        if not version or not requirement.specifier.contains(version, prereleases=True):
            pinned = version or "nothing"
            found.append(f"{file} pins {pinned} where pyproject.toml wants {requirement}")
        elif not hashes:
            found.append(f"{file} has no hashes of {requirement.name}")
    return found


def changes(pins: Pins) -> list[str]:
    """Return the pinned releases that the index does not have any more.

    Raises
    ------
    NotAuditedError
        The index does not answer, or not in time.
    """
    asked = "\n".join(f"{name}=={version}" for name, (version, _) in pins.items())
    command = [
        *("uv", "pip", "compile", "--no-deps", "--generate-hashes", "--python-version=3.13"),
        *("--no-cache", "--color=never", "--no-header", "--no-annotate"),
        *("--no-emit-index-url", "--no-emit-find-links", *_pip_index(), "-"),
    ]
    told = _run(command, asked)
    if told.returncode == 2:  # uv: no answer; 1 is an answer, too
        raise NotAuditedError(told.stderr.strip())
    if told.returncode:
        return [f"the index has not all that is pinned: {told.stderr.strip()}"]
    found = [line for line in told.stderr.splitlines() if "yanked" in line]
    lines = iter(told.stdout.replace("\\\n", " ").splitlines())
    there = {name: hashes for name, *hashes in (line.split() for line in lines)}
    for name, (version, hashes) in pins.items():
        gone = {f"--hash={known}" for known in hashes}.difference(there[f"{name}=={version}"])
        if gone:
            found.append(f"{name} {version}: the index has no file with {min(gone)}")
    return found


def _pip_index() -> list[str]:
    """Return uv's option for the index of pip's configuration, which uv does not read."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines())
    for section in (":env:", "install", "global"):  # the first one counts
        if url := settings.get(f"{section}.index-url"):
            return ["--default-index", ast.literal_eval(url)]
    return []


def vulnerabilities(files: Sequence[Path], options: Sequence[str]) -> list[str]:
    """Return the pinned releases with known vulnerabilities in OSV (osv.dev).

    Raises
    ------
    NotAuditedError
        The database does not answer, or not in time.
    """
    command = [
        *("pip-audit", "--vulnerability-service=osv", "--format=json", "--desc=off"),
        *("--progress-spinner=off", "--disable-pip", "--require-hashes", "--strict", *options),
        *(f"--requirement={file}" for file in files),
    ]
    told = _run(command)
    if not told.stdout:
        raise NotAuditedError(told.stderr.strip().rpartition("\n")[2])
    return [
        f"{release['name']} {release['version']}: {known['id']} {' '.join(known['aliases'])}; "
        f"mended in {' '.join(known['fix_versions']) or 'no release'}"
        for release in loads(told.stdout)["dependencies"]
        for known in release["vulns"]
    ]


def _run(command: Sequence[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a tool that is installed beside this Python, within the time limit."""
    tool, *arguments = command
    beside = Path(sys.executable).parent / tool
    try:
        return subprocess.run(
            [beside, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1"},
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NotAuditedError(f"{tool} had not ended after {PATIENCE_SECONDS} s") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options go to pip-audit, such as --ignore-vuln."
    )
    sys.exit(main(parser.parse_known_args()[1]))
