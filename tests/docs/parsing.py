"""Whether commands that are not run would be accepted: by their own parsers and models."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import botocore.session
import click
from botocore import xform_name
from botocore.model import ServiceModel
from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]
from yaml import YAMLError  # type: ignore[import-untyped]

from gradshard.cli import main
from tests.docs.pages import ROOT, SHELL, Block
from tests.docs.session import console_steps

_ORDINARY: Final = frozenset(
    {*("cd", "curl", "docker", "echo", "eval", "export", "kill", "pip", "sleep", "source")}
)
"""Commands of which nothing is checked."""

_SEPARATORS: Final = frozenset({"|", "||", "&&", ";", "&", "(", ")"})
_ASSIGNMENT: Final = re.compile(r"[A-Z_]+=.*", re.DOTALL)
_AWS_OPTIONS: Final = frozenset({"--query", "--output", "--cli-binary-format", "--region"})


class ParseError(Exception):
    """A block would not be accepted."""


def parse(block: Block) -> None:
    """Check a block without running it.

    Raises
    ------
    ParseError
        It would not be accepted.
    """
    try:
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml_parse(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "console":
            for command, _ in console_steps(block.text):
                parse_shell(command)
        elif block.language in SHELL:
            parse_shell(block.text)
    except (ValueError, SyntaxError, ParseError, YAMLError) as error:
        raise ParseError(f"{block}: {error}") from error


def parse_shell(text: str) -> None:
    """Check the commands of a piece of shell."""
    checked = subprocess.run(
        ["bash", "-n", "-c", text], capture_output=True, text=True, check=False
    )
    if checked.returncode != 0:
        raise ParseError(checked.stderr)
    for words in _commands(text):
        _parse_command(words)


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without redirections."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if word in _SEPARATORS:
                yield words
                words = []
            elif set(word) <= set("<>&") and word:
                skip = True  # the file that follows
            elif skip:
                skip = False
            else:
                words.append(word)
        yield words


def _without_prefix(words: list[str]) -> list[str]:
    """Return a command without the variables and words that stand before it."""
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in {"do", "env"}):
        words = words[1:]
        while words[:1] == ["-u"]:
            words = words[2:]
    return words


def _parse_command(words: list[str]) -> None:
    words = _without_prefix(words)
    if not words or words[0] in {"for", "done"}:
        return
    name, *rest = words
    name = name.rpartition("bin/")[2]
    if name == "gradshard":
        parse_gradshard(rest)
    elif name == "sam":
        parse_sam(rest)
    elif name == "aws":
        parse_aws(rest)
    elif name == "make":
        _parse_make(rest)
    elif name in ("python", "python3.13"):
        _parse_python(rest)
    elif name not in _ORDINARY:
        raise ParseError(f"{name}: not a command that is known here")


def parse_gradshard(words: list[str]) -> None:
    """Check a command line with the command's own parser."""
    if not words:
        return None  # its help, or the source of its completion
    context = click.Context(main)
    command: click.Command = main
    while isinstance(command, click.Group):
        if not words:
            raise ParseError("gradshard: a command is missing")
        found = command.get_command(context, words[0])
        if found is None:
            raise ParseError(f"gradshard: no command {words[0]}")
        command, words = found, words[1:]
    if command.name == "deploy":
        # An option of its own, before those of `sam`.
        return parse_sam(["deploy", *(word for word in words if word != "--keeper")])
    try:
        command.make_context(command.name, list(words))
    except click.ClickException as error:
        raise ParseError(f"{command.name}: {error.format_message()}") from error


def options_of(command: click.Command) -> set[str]:
    """Return a command's options."""
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}


def sam_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Find a command of sam's, and return it with the words that are left."""
    from samcli.cli.main import cli  # type: ignore[import-untyped]

    command: Any = cli
    context = click.Context(command, obj=True)  # else sam loads none of its commands
    while isinstance(command, click.Group):
        name, *words = words or [""]
        found = command.get_command(context, name)
        if found is None:
            raise ParseError(f"sam: no command {name}")
        command = found
    return command, words


def parse_sam(words: list[str]) -> None:
    """Check that a command of sam's has the options."""
    command, rest = sam_command(words)
    known = options_of(command)
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("-") and option not in known:
            raise ParseError(f"sam {command.name}: no option {option}")


@cache
def service_model(name: str) -> ServiceModel:
    """Return the model of a service's API."""
    return botocore.session.get_session().get_service_model(name)


def parse_aws(words: list[str]) -> None:
    """Check a command of the AWS command line against the model of the service's API."""
    service, operation, *rest = words
    name = "s3" if service == "s3api" else service
    model = service_model(name)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    if operation not in names:
        raise ParseError(f"aws {service}: no operation {operation}")
    shape = model.operation_model(names[operation]).input_shape
    assert shape, f"aws {service} {operation} takes nothing"
    members = {xform_name(name, "-"): member for name, member in shape.members.items()}
    known = set(_AWS_OPTIONS)
    for name, member in members.items():
        known |= {f"--{name}"} | ({f"--no-{name}"} if member.type_name == "boolean" else set())
    for word in rest:
        if word.startswith("--") and word not in known:
            raise ParseError(f"aws {service} {operation}: no option {word}")
    required = {f"--{xform_name(name, '-')}" for name in shape.required_members}
    if missing := required - set(rest):
        raise ParseError(f"aws {service} {operation}: {', '.join(sorted(missing))} is missing")


def _parse_make(words: list[str]) -> None:
    variables = re.findall(r"^([A-Z_]+) :?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = re.findall(
        r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    known = {name for line in targets for name in line.split()}
    for word in words:
        variable, equals, _ = word.partition("=")
        if variable not in (variables if equals else known) and variable not in _OTHER_VARIABLES:
            raise ParseError(f"make: no {'variable' if equals else 'target'} {variable}")


_OTHER_VARIABLES: Final = frozenset({"OPTIONS", "CHROMIUM", "SCREENSHOTS"})
"""Of make's targets that are used without a default."""


def _parse_python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        if importlib.util.find_spec(words[1]) is None:
            raise ParseError(f"python: no module {words[1]}")
    elif words and words[0].startswith("examples/") and not (ROOT / words[0]).is_file():
        raise ParseError(f"python: no file {words[0]}")
