"""A program in any language that trains for a client, with files in and out."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gradshard.client.rejection_watch import RejectedUpdate
from gradshard.updates.tensors import Array, unpack
from gradshard.updates.upload_source import TensorContent
from gradshard_core.errors import UpdateError
from gradshard_core.records.training_state import Invitation

INVITATION: Final = "invitation.json"
MODEL: Final = "model.safetensors"
TRAINED: Final = "trained.safetensors"
RESULT: Final = "result.json"
"""The files of a program, in the folder in which it is started."""


class Program:
    """Runs a program for each invitation.

    Parameters
    ----------
    command
        The program and its arguments. A path of the program is relative to the current folder.
    tell
        Called before the program is started.
    """

    def __init__(
        self, command: Sequence[str], tell: Callable[[Invitation], None] = lambda _: None
    ) -> None:
        self._command, self._tell = list(command), tell
        self._rejected: RejectedUpdate | None = None
        # The program runs in another folder than the one to which its path is relative.
        self._started = [_absolute(command[0]), *command[1:]]

    def rejected(self, update: RejectedUpdate) -> None:
        """Tell the program, at its next start, why its last update did not count."""
        self._rejected = update

    def train(
        self, model: dict[str, Array], invitation: Invitation
    ) -> tuple[dict[str, Array], int, Mapping[str, float]]:
        """Return the trained tensors, the number of samples and the metrics.

        Raises
        ------
        UpdateError
            The program failed, or did not write its files.
        """
        with tempfile.TemporaryDirectory(prefix="gradshard-") as folder:
            result = self._run(Path(folder), model, invitation)
            return unpack(bytearray(_read(Path(folder, TRAINED)))), *_numbers(result)

    def evaluate(
        self, model: dict[str, Array], invitation: Invitation
    ) -> tuple[Mapping[str, float], int]:
        """Return the metrics and the number of samples; raises as :meth:`train`."""
        with tempfile.TemporaryDirectory(prefix="gradshard-") as folder:
            samples, metrics = _numbers(self._run(Path(folder), model, invitation))
            return metrics, samples

    def _run(self, folder: Path, model: dict[str, Array], invitation: Invitation) -> Any:
        content = TensorContent(model, None)
        (folder / MODEL).write_bytes(content.read(0, content.nbytes))
        told = {"rejected": self._rejected and asdict(self._rejected)}
        self._rejected = None
        (folder / INVITATION).write_text(json.dumps(asdict(invitation) | told) + "\n")
        self._tell(invitation)
        try:
            ended = subprocess.run(self._started, cwd=folder, check=False)  # noqa: S603 - the user's
        except OSError as error:
            raise UpdateError(f"{self._command[0]!r} cannot be started: {error}") from None
        if ended.returncode != 0:
            raise UpdateError(f"{self._command[0]!r} ended with code {ended.returncode}")
        try:
            return json.loads(_read(folder / RESULT))
        except ValueError as error:
            raise UpdateError(f"{RESULT} is not JSON: {error}") from None


def _absolute(program: str) -> str:
    """Return the path of a program as an absolute one; a name is looked up when it is started."""
    return str(Path(program).absolute()) if os.sep in program else program


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UpdateError(f"the program did not write {path.name}") from None


def _numbers(result: Any) -> tuple[int, Mapping[str, float]]:
    """Return samples and metrics; what they are is checked where they are submitted."""
    if not isinstance(result, dict) or not isinstance(result.get("metrics", {}), dict):
        raise UpdateError(f'{RESULT} is not {{"samples": …, "metrics": {{…}}}}')
    if "samples" not in result:
        raise UpdateError(f"{RESULT} has no samples: on how many the client trained")
    return result["samples"], result.get("metrics", {})
