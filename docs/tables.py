"""Tables that say what the code says.

In a page such a table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is
`commands`, `round options`, `training options`, or one of `parameters`, `outputs` and `functions`,
of template.yaml. `docs/conf.py` fills it in when it builds the site. In the repository, a sentence
may stand there instead.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]

from gradshard.cli import main as gradshard
from gradshard_core.specs import training_spec
from gradshard_core.specs.option_kinds import Option
from gradshard_core.specs.round_spec import DEFAULTS, OPTIONS

DOCS: Final = Path(__file__).parent

_TABLE: Final = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_WHERE: Final = ("--stack", "--region", "--profile", "--local", "--port")
_EVERYWHERE: Final = ("--json", "--quiet", "--verbose", "--debug", "--help")
_OPEN: Final = "gradshard open"
_DEFAULT: Final = re.compile(r"(?P<help>.*) \[default: (?P<default>.*)\]", re.DOTALL)


def filled(page: str) -> str:
    """Return a page's text with its tables as they should be."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table(found[2]).strip()}\n\n{found[3]}", page)


def table(name: str) -> str:
    """Return one table.

    Raises
    ------
    KeyError
        There is no such table.
    """
    makers: dict[str, Callable[[], Iterator[str]]] = {
        "commands": _of_commands,
        "parameters": _of_parameters,
        "outputs": _of_outputs,
        "functions": _of_functions,
        "round options": partial(_of_options, OPTIONS, DEFAULTS),
        "training options": partial(_of_options, training_spec.OPTIONS, training_spec.DEFAULTS),
    }
    return "".join(makers[name]())


def commands() -> dict[str, click.Command]:
    """Return every command that does something, by its name."""
    return dict(_commands("gradshard", gradshard))


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            member = command.get_command(context, inner)
            if member is not None:
                yield from _commands(f"{name} {inner}", member)
    else:
        yield name, command


def _of_commands() -> Iterator[str]:
    for name, command in commands().items():
        yield f"### {name}\n\n"
        yield from _of_command(name, command)


def _of_command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=1000)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"{command.get_short_help_str(200)}\n\n```text\n{usage}\n```\n\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    own = [o for o in options if not {*o.opts} & {*_WHERE, *_EVERYWHERE}]
    shared = [] if name == _OPEN else [o.opts[0] for o in own if _is_of_open(o)]
    own = [o for o in own if o.opts[0] not in shared]
    connected = [o.opts[0] for o in options if o.opts[0] in _WHERE]
    if own:
        yield from _rows(
            ("option", "", "default"),
            ((_option(o), *map(_text, _help_and_default(o))) for o in own),
        )
        yield "\n"
    if shared:
        names = ", ".join(f"`{option}`" for option in shared)
        yield f"Also {names}, as in [`{_OPEN}`](#gradshard-open).\n\n"
    if connected:
        which = "the application's options" if len(connected) > 1 else f"`{connected[0]}`"
        yield f"Also [{which}](#the-application).\n\n"


def _is_of_open(option: click.Option) -> bool:
    """Return whether ``gradshard open`` has the same option with the same help."""
    return any(
        (other.opts, other.help) == (option.opts, option.help)
        for other in commands()[_OPEN].params
        if isinstance(other, click.Option)
    )


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        value = " \\| ".join(f"`{choice}`" for choice in option.type.choices)
        return f"{names} {value}"
    if option.metavar:
        return f"{names} {_text(option.metavar)}"
    made = option.make_metavar()
    return f"{names} {_text(_PLAIN_METAVARS.get(made, made))}"


_PLAIN_METAVARS: Final = {"INTEGER": "N", "INTEGER RANGE": "N", "FLOAT": "NUMBER", "TEXT": "NAME"}


def _help_and_default(option: click.Option) -> tuple[str, str]:
    text = option.help or ""
    if stated := _DEFAULT.fullmatch(text):
        return stated["help"], stated["default"]
    if option.required:
        return text, "required"
    if option.multiple or option.is_flag or not option.show_default:
        return text, ""
    return text, f"`{option.default}`"


def _of_options(options: Mapping[str, Option], defaults: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for name, declared in options.items():
        default = defaults.get(name)
        if default is not None:
            value = str(default).lower() if isinstance(default, bool) else str(default)
            text = f"`{value}`"
        else:
            text = declared.default or "required"
        rows.append((f"`{name}`", _text(declared.kind.values), text))
    yield from _rows(("field", "values", "default"), rows)


def _template() -> dict[str, Any]:
    document: dict[str, Any] = yaml_parse((DOCS.parent / "template.yaml").read_text())
    return document


def _of_parameters() -> Iterator[str]:
    template = _template()
    interface = template["Metadata"]["AWS::CloudFormation::Interface"]
    rows = []
    for group in interface["ParameterGroups"]:
        for name in group["Parameters"]:
            of = template["Parameters"][name]
            default = f"`{of['Default']}`" if of["Default"] != "" else "empty"
            rows.append((f"`{name}`", _text(of["Description"]), _bounds(of), default))
    yield from _rows(("parameter", "", "values", "default"), rows)


def _bounds(of: Mapping[str, Any]) -> str:
    if "AllowedValues" in of:
        return ", ".join(f"`{value}`" for value in of["AllowedValues"])
    if "MinValue" in of:
        return f"{of['MinValue']} to {of['MaxValue']}"
    return _text(of["ConstraintDescription"].removeprefix("must be "))


def _value(value: Any) -> str:
    return f"`{value['Ref']}`" if isinstance(value, dict) else str(value)


def _of_outputs() -> Iterator[str]:
    outputs = _template()["Outputs"]
    yield from _rows(
        ("output", ""), ((f"`{name}`", _text(of["Description"])) for name, of in outputs.items())
    )


def _of_functions() -> Iterator[str]:
    template = _template()
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    rows = []
    for of in template["Resources"].values():
        if of["Type"] != "AWS::Serverless::Function":
            continue
        properties = of["Properties"]
        own = properties.get("Environment", {}).get("Variables", {})
        rows.append(
            (
                f"`{Path(properties['CodeUri']).name}`",
                _value(properties["MemorySize"]),
                f"{properties['Timeout']} s",
                ", ".join(f"`{name}`" for name in own),
            )
        )
    yield from _rows(("function", "memory, MB", "timeout", "variables of its own"), rows)
    yield "\n"
    yield f"All functions have {', '.join(f'`{name}`' for name in shared)}.\n"


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |\n".replace("  ", " ")
    yield f"|{'---|' * len(heads)}\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n".replace("  ", " ")


def _text(text: str) -> str:
    """Return text for a table's cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))
