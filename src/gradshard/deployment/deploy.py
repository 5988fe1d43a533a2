"""Deployment to AWS: `sam build` and `sam deploy` with the same architecture, from any folder."""

import os
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError

from gradshard.aws.boto_client import make_session
from gradshard.deployment import application_sources, lambda_layer_build, sam_command, user_config
from gradshard.deployment.defaults import STACK
from gradshard_core.errors import DeployError
from gradshard_core.limits import aws_limits

KEEPER_ENVIRONMENT: Final = "keeper"
"""The table of `samconfig.toml` with the settings of the mask keeper's stack."""

_ARCHITECTURE: Final = "Architecture"
_TEMPLATES_ARCHITECTURE: Final = "arm64"


@dataclass(frozen=True)
class Options:
    """The options of `sam deploy`, parsed as far as `sam build` needs them.

    Attributes
    ----------
    config_file
        The configuration file of `sam`, if one was named.
    environment
        The table of that file that is used.
    parameters
        The parameters of the template, by name.
    rest
        All other options, as they were given.
    """

    config_file: Path | None
    environment: str
    parameters: Mapping[str, str]
    rest: tuple[str, ...]

    def value(self, name: str) -> str:
        """Return the value of one of the other options; empty if it was not given."""
        found = ""
        for argument, following in pairwise((*self.rest, "")):
            option, equals, value = argument.partition("=")
            if option == name:
                found = value if equals else following
        return found

    @property
    def guided(self) -> bool:
        """Whether `sam` asks for the options."""
        return not {"--guided", "-g"}.isdisjoint(self.rest)


class Deployed(NamedTuple):
    """The name and region of a deployed stack.

    Attributes
    ----------
    stack
        The name of the stack.
    region
        The region; None if options, stored answers and the SDK's settings name none.
    profile
        The credentials' name, if one was given.
    """

    stack: str
    region: str | None
    profile: str | None

    @property
    def variables(self) -> dict[str, str]:
        """The variables to export so that commands find the stack, if they are not set already."""
        wanted = {"AWS_PROFILE": self.profile, "AWS_DEFAULT_REGION": self.region}
        found = {"AWS_PROFILE": os.environ.get("AWS_PROFILE"), "AWS_DEFAULT_REGION": _region()}
        return {name: value for name, value in wanted.items() if value and value != found[name]}


def deploy(arguments: Sequence[str], *, keeper: bool = False) -> Deployed:
    """Build the application, or the mask keeper, deploy it, and remember the region.

    The layer is built for the processor that the stack is to have, which `sam build` alone does not
    learn from the parameters of `sam deploy`.

    Parameters
    ----------
    arguments
        Options of `sam deploy`.
    keeper
        Whether to deploy the mask keeper.

    Raises
    ------
    DeployError
        A tool is missing, an option makes no sense, or `sam` failed, which has said why.
    """
    options = parse_options(arguments, KEEPER_ENVIRONMENT if keeper else "default")
    sam = sam_command.find_sam()
    lambda_layer_build.check_builder()
    with application_sources.folder() as sources:
        config = _config_file(options, sources, user_config.answers(keeper=keeper))
        if options.value("--stack-name") or not options.guided:
            _check_name(_deployed(config, options))
        defaults = {_ARCHITECTURE: _TEMPLATES_ARCHITECTURE}
        parameters = defaults | _saved_parameters(config, options) | dict(options.parameters)
        common = ["--config-file", str(config), "--config-env", options.environment]
        common += ["--parameter-overrides", *_as_arguments(parameters)]
        build = sources / ".aws-sam" / "build"
        file = sources / (application_sources.KEEPER if keeper else "template.yaml")
        template = ["--template-file", str(file), "--base-dir", str(file.parent)]
        _run([sam, "build", *template, "--build-dir", str(build), *common])
        lambda_layer_build.compile_layers(build)
        built = ["--template-file", str(build / "template.yaml")]
        try:
            _run([sam, "deploy", *built, *common, *options.rest])
        except DeployError:
            _check_name(_deployed(config, options))  # as the guide was answered
            raise
        deployed = _deployed(config, options)
        if deployed.region:
            user_config.remember_region(deployed.stack, deployed.region)
        if options.guided:
            _check_answers(parameters, _saved_parameters(config, options))
    return deployed


def parse_options(arguments: Sequence[str], environment: str = "default") -> Options:
    """Parse the options of `sam deploy`; ``environment`` is the table of settings without one.

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
        environment=values.get("--config-env", [environment])[-1],
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


def _config_file(options: Options, sources: Path, kept: Path) -> Path:
    """Choose where `sam` reads its settings, and keeps what the guide is answered."""
    shipped = sources / "samconfig.toml"
    answers = options.config_file or kept
    if answers.is_file():
        return answers
    if not options.guided:
        return shipped if options.config_file is None else answers
    try:
        answers.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped, answers)
    except OSError as error:
        raise DeployError(f"{answers} cannot be written: {error.strerror}") from None
    return answers


def _saved(config: Path, options: Options, name: str) -> Any:
    """Read a setting from a configuration of `sam`; None if it is not there."""
    try:
        document: dict[str, Any] = tomllib.loads(config.read_text())
    except OSError as error:
        raise DeployError(f"{config} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(f"{config} is not TOML: {error}") from None
    environment = document.get(options.environment, {})
    for command in ("deploy", "global"):
        found = environment.get(command, {}).get("parameters", {}).get(name)
        if found:
            return found
    return None


def _saved_parameters(config: Path, options: Options) -> dict[str, str]:
    """Read the template's parameters from a configuration of `sam`."""
    found = _saved(config, options, "parameter_overrides") or []
    return _parse_parameters([found] if isinstance(found, str) else found)


def _deployed(config: Path, options: Options) -> Deployed:
    """Say where `sam` deploys to: what is given counts, then what is saved, then the SDK's."""

    def named(option: str) -> str | None:
        return options.value(option) or _saved(config, options, option[2:].replace("-", "_"))

    profile = named("--profile")
    return Deployed(named("--stack-name") or STACK, named("--region") or _region(profile), profile)


def _region(profile: str | None = None) -> str | None:
    """Return the region that the SDK is configured for."""
    try:
        region: str | None = make_session(profile=profile).get_config_variable("region")
    except BotoCoreError:  # a profile that is not there, of which `sam` speaks
        return None
    return region


def _check_name(deployed: Deployed) -> None:
    """Check that the names that contain the stack's name are not too long."""
    if len(deployed.stack) > aws_limits.MAX_STACK_NAME:
        raise DeployError(
            f"stack name {deployed.stack!r} has {len(deployed.stack)} characters: names of its "
            f"resources begin with it, and leave {aws_limits.MAX_STACK_NAME}; give a shorter "
            "--stack-name"
        )


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
    environment = {**os.environ, "PATH": sam_command.search_path()}
    done = subprocess.run(command, env=environment, check=False)  # noqa: S603 - no shell
    if done.returncode != 0:
        raise DeployError(
            f"`sam {command[1]}` failed (exit code {done.returncode}); what it said stands above"
        )
