"""Options that commands share, and those made from the table of a round's options."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import click
import pytest

from gradshard.cli import main
from gradshard.client import federation
from gradshard.client.stack import Stack
from gradshard_core.specs.round_spec import OPTIONS
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStack, MemoryStore


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            member = command.get_command(context, inner)
            assert member is not None
            yield from commands(f"{name} {inner}", member)


COMMANDS = dict(commands("gradshard", main))
CLICK_OPTIONS = [
    (f"{name} {option.opts[0]}", option)
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]


def options_of(name: str) -> dict[str, click.Option]:
    return {
        flag: option
        for option in COMMANDS[name].params
        if isinstance(option, click.Option)
        for flag in option.opts
    }


def test_every_option_says_what_it_does_and_its_default() -> None:
    assert len(CLICK_OPTIONS) > 500
    for name, option in CLICK_OPTIONS:
        assert_says_what_it_does(name, option)


def assert_says_what_it_does(name: str, option: click.Option) -> None:
    text = option.help or ""
    stated = text.replace(" [required; ", " [default: ").replace(" [required]", " [default: none]")
    sentence, _, default = stated.partition(" [default: ")
    assert sentence.endswith("."), (name, text)
    assert sentence[0].isupper(), (name, text)
    has_value = option.default is not None and option.show_default
    takes_value = not option.is_flag and not option.required and not option.multiple
    given_instead_of_others = {"--client", "--clients", "--size", "--crossover", "--ticket"}
    if takes_value and option.opts[0] not in given_instead_of_others:
        assert bool(default) != bool(has_value), (name, text)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_it_does_in_one_sentence(name: str) -> None:
    first = (COMMANDS[name].help or "").split("\n\n")[0]
    assert first.endswith("."), name
    assert first.count(". ") == 0, name


def test_open_has_every_option_of_a_round() -> None:
    # Only trainings state where updates of a buffered training are.
    flags = {f"--{name.replace('_', '-')}" for name in OPTIONS if name != "inbox"}
    assert flags <= options_of("gradshard open").keys()


def test_help_of_a_duration_names_units_default_and_bound() -> None:
    assert options_of("gradshard open")["--timeout"].help == (
        "Stop waiting for updates after this time, for example 90s, 30m or 2h. "
        "[default: 1h; at most 7d]"
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_that_speaks_to_aws_takes_region_and_profile(name: str) -> None:
    flags = options_of(name).keys()
    assert ("--stack" in flags) == ({"--region", "--profile", "--verbose"} <= flags)


@pytest.mark.parametrize(
    "name",
    [
        *("submit", "fetch", "watch", "model fetch", "local up", "local down"),
        *("model rollback", "open", "show", "list", "logs", "ticket", "convert"),
    ],
)
def test_commands_for_scripts_take_json(name: str) -> None:
    assert "--json" in options_of(f"gradshard {name}")


def test_region_and_profile_reach_the_stack(
    run: Run, stack: MemoryStack, finished: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def make(*_: object, **settings: object) -> Stack:
        given.update(settings)
        return stack

    monkeypatch.setattr(federation, "Stack", make)
    assert run("show", "r1", "--region", "eu-west-1", "--profile", "work").exit_code == 0
    assert (given["region"], given["profile"]) == ("eu-west-1", "work")
    assert_one_line(run("show", "r1", "--local", "--region", "eu-west-1"), "leave them out with")


@pytest.mark.usefixtures("opened")
def test_submit_as_json(run: Run, file: Any) -> None:
    submitted = ("submit", "r1", "a", file, "--json", "--samples")
    document = json.loads(run(*submitted, 7).stdout)
    assert document == {
        "round": "r1",
        "client": "a",
        "file": str(file),
        "nbytes": file.stat().st_size,
        "replaced": False,
    }
    assert json.loads(run(*submitted, 8).stdout)["replaced"] is True


@pytest.mark.usefixtures("finished")
def test_watch_as_json_prints_a_line_for_each_change(run: Run) -> None:
    [line] = run("watch", "r1", "--json").stdout.splitlines()
    document = json.loads(line)
    assert (document["round"], document["state"], document["expected"]) == ("r1", "completed", 2)
    assert (document["tasks"], document["tasks_done"]) == (2, 2)


@pytest.mark.usefixtures("opened")
def test_quiet_prints_nothing_but_errors(run: Run, file: Any) -> None:
    quiet = run("submit", "r1", "a", file, "--samples", 7, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert_one_line(run("submit", "nope", "a", file, "--samples", 7, "-q"), "no round 'nope'")


@pytest.mark.usefixtures("finished")
def test_verbose_prints_requests_without_signatures(run: Run) -> None:
    logger = logging.getLogger("botocore.endpoint")
    before = (list(logger.handlers), logger.level, logger.propagate)
    try:
        assert run("show", "r1", "-v").exit_code == 0
        [handler] = [handler for handler in logger.handlers if handler not in before[0]]

        class Operation:
            name = "GetObject"

        request = {"method": "GET", "url": "https://x.test/b/k?X-Amz-Signature=secret"}
        record = logger.makeRecord(
            logger.name,
            logging.DEBUG,
            "f",
            1,
            "Making request for %s with params: %s",
            (Operation, request),
            None,
        )
        assert handler.format(record) == "gradshard: GetObject: GET https://x.test/b/k"
        other = logger.makeRecord(logger.name, logging.DEBUG, "f", 1, "Sending", (), None)
        assert not handler.filter(other)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def test_a_timeout_beyond_the_longest_is_answered_in_days(run: Run) -> None:
    asked = ("open", "r1", "--clients", 3, "--timeout", "30d")
    assert_one_line(run(*asked), "'30d' is too long: at most 7d")


def test_the_rule_salf_without_p_is_answered_with_an_example(run: Run) -> None:
    said = 'for example {"name": "salf", "p": 0.2}'
    assert_one_line(run("open", "r1", "--clients", 3, "--rule", "salf"), said)
