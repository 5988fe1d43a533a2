"""The application to AWS: `sam build` and `sam deploy`, for the same processor, from anywhere."""

import os
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gradshard.deployment import application
from gradshard.errors import DeployError

ANSWERS: Final = "gradshard.toml"
"""Where the guide's answers are kept, in the current folder. Not `samconfig.toml`, which may be
another application's, with the name of its stack in it."""

_ARCHITECTURE: Final = "Architecture"
_TEMPLATES_ARCHITECTURE: Final = "arm64"


@dataclass(frozen=True)
class Options:
    """What was given for `sam deploy`, taken apart as far as `sam build` needs it.

    Attributes
    ----------
    config_file
        Of `sam`, when one was named.
    environment
        The table of that file that is used.
    parameters
        Of the template, by name.
    rest
        All other options, as they were given.
    """

    config_file: Path | None
    environment: str
    parameters: Mapping[str, str]
    rest: tuple[str, ...]

    @property
    def guided(self) -> bool:
        """Whether `sam` is to ask."""
        return not {"--guided", "-g"}.isdisjoint(self.rest)


def deploy(arguments: Sequence[str]) -> None:
    """Build the application and deploy it.

    The layer is built for the processor that the stack is to have, which `sam build` alone does not
    learn from the parameters of `sam deploy`.

    Parameters
    ----------
    arguments
        Options of `sam deploy`.

    Raises
    ------
    DeployError
        A tool is missing, an option makes no sense, or `sam` failed, which has said why.
    """
    options = parse_options(arguments)
    sam = application.find_sam()
    application.check_builder()
    with application.folder() as sources:
        config = _config_file(options, sources)
        defaults = {_ARCHITECTURE: _TEMPLATES_ARCHITECTURE}
        parameters = defaults | _saved_parameters(config, options) | dict(options.parameters)
        common = ["--config-file", str(config), "--config-env", options.environment]
        common += ["--parameter-overrides", *_as_arguments(parameters)]
        build = sources / ".aws-sam" / "build"
        template = ["--template-file", str(sources / "template.yaml"), "--base-dir", str(sources)]
        _run([sam, "build", *template, "--build-dir", str(build), *common])
        built = ["--template-file", str(build / "template.yaml")]
        _run([sam, "deploy", *built, *common, *options.rest])
        if options.guided:
            _check_answers(parameters, _saved_parameters(config, options))


def parse_options(arguments: Sequence[str]) -> Options:
    """Take the options of `sam deploy` apart.

    Raises
    ------
    DeployError
        One of them lacks its value, or is not for here.
    """
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    current: list[str] = rest
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("-"):
            current = rest
            if name in {"--config-file", "--config-env", "--parameter-overrides"}:
                current = values.setdefault(name, [])
                current += [value] if equals else []
                continue
            if name in {"-t", "--template", "--template-file"}:
                raise DeployError(f"{name} is not for `gradshard deploy`: the template is its own")
        current.append(argument)
    for name, found in values.items():
        if not found:
            raise DeployError(f"{name} lacks its value")
    config_files = values.get("--config-file")
    return Options(
        config_file=Path(config_files[-1]).absolute() if config_files else None,
        environment=values.get("--config-env", ["default"])[-1],
        parameters=_parse_parameters(values.get("--parameter-overrides", [])),
        rest=tuple(rest),
    )


def _parse_parameters(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE …``, one or more in each text, quoted or not."""
    parameters = {}
    for text in texts:
        try:
            pairs = shlex.split(text)
        except ValueError as error:
            raise DeployError(f"parameters {text!r} cannot be read: {error}") from None
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not name.isalnum() or name == "ParameterKey":
                raise DeployError(f"parameter {pair!r} is not of the form NAME=VALUE")
            parameters[name] = value
    return parameters


def _as_arguments(parameters: Mapping[str, str]) -> list[str]:
    # sam takes an empty value only in quotes.
    return [f'{name}="{value}"' for name, value in parameters.items()]


def _config_file(options: Options, sources: Path) -> Path:
    """Choose where `sam` reads its settings, and keeps what the guide is answered."""
    shipped = sources / "samconfig.toml"
    answers = Path.cwd() / ANSWERS
    if options.config_file is not None:
        return options.config_file
    if answers.is_file() or (options.guided and Path.cwd() != application.checkout()):
        if not answers.exists():
            shutil.copyfile(shipped, answers)
        return answers
    return shipped


def _saved_parameters(config: Path, options: Options) -> dict[str, str]:
    """Read the template's parameters from a configuration of `sam`."""
    try:
        document: dict[str, Any] = tomllib.loads(config.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(f"{config} is not TOML: {error}") from None
    environment = document.get(options.environment, {})
    for command in ("deploy", "global"):
        found = environment.get(command, {}).get("parameters", {}).get("parameter_overrides")
        if found:
            return _parse_parameters([found] if isinstance(found, str) else found)
    return {}


def _check_answers(built: Mapping[str, str], answered: Mapping[str, str]) -> None:
    """Check that the guide was not answered with another processor than was built for."""
    architecture = answered.get(_ARCHITECTURE, built[_ARCHITECTURE])
    if architecture != built[_ARCHITECTURE]:
        raise DeployError(
            f"the guide was answered {architecture}, but the layer was built for "
            f"{built[_ARCHITECTURE]}: run `gradshard deploy` once more, which builds for "
            f"{architecture}"
        )


def _run(command: list[str]) -> None:
    """Run `sam` in the user's folder and on the user's terminal."""
    environment = {**os.environ, "PATH": application.search_path()}
    done = subprocess.run(command, env=environment, check=False)  # noqa: S603 - no shell
    if done.returncode != 0:
        raise DeployError(
            f"`sam {command[1]}` failed (exit code {done.returncode}); what it said stands above"
        )
