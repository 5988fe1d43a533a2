"""The translated template, held to what AWS's documentation requires in sentences.

What it requires is in ``tests/aws_constraints.toml``, with its sources.
"""

import copy
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pytest

pytest.importorskip("samcli", reason="sam is not installed: `make setup`")

from gradshard_core.limits.aws_limits import MAX_STACK_NAME
from tests.unit.application.test_template import ROOT, TEMPLATE

CONSTRAINTS: list[dict[str, Any]] = tomllib.loads(
    (ROOT / "tests" / "aws_constraints.toml").read_text()
)["constraint"]
DEFINITION = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())

ABSENT: Final = object()
"""What ``AWS::NoValue`` leaves of a property."""

MADE: Final = "x" * 64
"""A name that CloudFormation makes: as long as its kind may have, or about so."""

PSEUDO: Final = {
    "AWS::Partition": "aws-us-gov",
    "AWS::Region": "ap-southeast-2",
    "AWS::AccountId": "1" * 12,
    "AWS::StackName": "s" * MAX_STACK_NAME,
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::NoValue": ABSENT,
}
FREE: Final = {
    "KmsKeyArn": f"arn:aws-us-gov:kms:ap-southeast-2:{'1' * 12}:key/{'k' * 36}",
    "PermissionsBoundaryArn": f"arn:aws-us-gov:iam::{'1' * 12}:policy/{'p' * 128}",
    "AlarmTopicArn": f"arn:aws-us-gov:sns:ap-southeast-2:{'1' * 12}:{'t' * 256}",
    "AlarmEmail": "on-call@example.org",
    "KeeperBucket": "k" * 63,
    "KeeperAccount": "1" * 12,
    "EndpointUrl": f"http://{'e' * 253}",
}
"""Parameters that may be any text of a form, long."""


# ------------------------------------------------------------ what CloudFormation makes of the text


class Setting(NamedTuple):
    """A way to deploy."""

    conditions: bool
    """How all conditions turn out."""
    choice: int
    """Which of its values each parameter has."""

    def resolve(self, value: Any) -> Any:
        """Return a value as CloudFormation hands it on, with names as long as they get."""
        if isinstance(value, list):
            return [found for entry in value if (found := self.resolve(entry)) is not ABSENT]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)]:
                return self._name(name)
            case [("Fn::GetAtt", path)]:
                return self._attribute(path if isinstance(path, str) else ".".join(path))
            case [("Fn::Sub", str(text))]:
                return re.sub(r"\$\{([\w:.]+)\}", self._insert, text)
            case [("Fn::If", [_, yes, no])]:
                return self.resolve(yes if self.conditions else no)
            case [(function, _)] if function.startswith("Fn::"):
                raise AssertionError(f"{function} is not known here")
        found = {key: self.resolve(entry) for key, entry in value.items()}
        return {key: entry for key, entry in found.items() if entry is not ABSENT}

    def _name(self, name: str) -> Any:
        if name in PSEUDO:
            return PSEUDO[name]
        if name in TEMPLATE["Parameters"]:
            return self._parameter(name)
        properties = TEMPLATE["Resources"][name].get("Properties", {})
        given = [properties[key] for key in ("Name", "LogGroupName") if key in properties]
        return self.resolve(given[0]) if given else MADE

    def _parameter(self, name: str) -> Any:
        declared = TEMPLATE["Parameters"][name]
        values = declared.get("AllowedValues")
        if values is None and declared["Type"] == "Number":
            values = [declared["MinValue"], declared["MaxValue"]]
        if values is None:
            return FREE[name] if self.conditions else ""
        return values[self.choice % len(values)]

    def _attribute(self, path: str) -> str:
        name, _, attribute = path.partition(".")
        if "Arn" not in attribute:
            return MADE
        end = ":*" if TEMPLATE["Resources"][name]["Type"] == "AWS::Logs::LogGroup" else ""
        return f"arn:aws-us-gov:service:ap-southeast-2:{'1' * 12}:kind:{self._name(name)}{end}"

    def _insert(self, found: re.Match[str]) -> str:
        return str(self._attribute(found[1]) if "." in found[1] else self._name(found[1]))


MOST_VALUES = max(len(p.get("AllowedValues", ())) for p in TEMPLATE["Parameters"].values())
SETTINGS = [Setting(yes, choice) for yes in (True, False) for choice in range(MOST_VALUES)]


def resources(template: dict[str, Any], setting: Setting) -> Iterator[tuple[str, str, Any]]:
    """Yield type, name and properties of all that is deployed, and of the template itself."""
    yield "Template", "template.yaml", template
    yield "Definition", "round.asl.json", DEFINITION
    for name, resource in template["Resources"].items():
        if "Condition" not in resource or setting.conditions:
            yield resource["Type"], name, setting.resolve(resource.get("Properties", {}))


def at(value: Any, path: str) -> Iterator[Any]:
    """Yield what stands at a path."""
    step, _, rest = path.partition(".")
    name, kind = re.fullmatch(r"([^\[{]*)(\[\]|\{\})?", step).groups()  # type: ignore[union-attr]
    if not step:
        yield value
    elif name == "*":
        for entry in value.values():
            yield from at(entry, rest)
    elif isinstance(value, dict) and name in value:
        found = value[name]
        if kind == "{}":
            found = json.loads(found)
        for entry in found if kind == "[]" else [found]:
            yield from at(entry, rest)


# ------------------------------------------------------------------------- what may be required


def chars(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def present(value: dict[str, Any], names: list[str]) -> list[str]:
    return [name for name in names if name in value]


CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "at_least_one": lambda value, names: bool(present(value, names)),
    "at_most_one": lambda value, names: len(present(value, names)) <= 1,
    "needs": lambda value, needs: all(
        set(others) <= set(value) for name, others in needs.items() if name in value
    ),
    "only_with": lambda value, only: all(
        value.get(other) in values
        for name, beside in only.items()
        if name in value
        for other, values in beside.items()
    ),
    "pattern": lambda value, pattern: re.fullmatch(pattern, value) is not None,
    "max_length": lambda value, most: len(value) <= most,
    "max_chars": lambda value, most: chars(value) <= most,
    "characters": lambda value, allowed: (
        re.fullmatch(f"{allowed}*", json.dumps(value, ensure_ascii=False)) is not None
    ),
    "range": lambda value, ends: ends[0] <= value <= ends[1],
    "one_of": lambda value, values: value in values,
    "multiple_of": lambda value, of: value % of == 0,
    "min_items": lambda value, least: len(value) >= least,
    "max_items": lambda value, most: len(value) <= most,
    "unique": lambda value, key: len({entry[key] for entry in value}) == len(value),
    "keys": lambda value, pattern: all(re.fullmatch(pattern, key) for key in value),
    "no_keys": lambda value, names: present(value, names) == [],
    "is_single": lambda value, wanted: isinstance(value, str) is wanted,
    "max_product": lambda value, most: math.prod(value[name] for name in most["of"]) <= most["is"],
}


def violations(template: dict[str, Any], settings: Sequence[Setting]) -> set[str]:
    """Say what AWS would reject, and where that is written."""
    return {
        f"{name}.{constraint['at']}: {check} {constraint[check]}, see {constraint['source']}"
        for setting in settings
        for kind, name, properties in resources(template, setting)
        for constraint in CONSTRAINTS
        if constraint["type"] == kind
        for value in at(properties, constraint["at"])
        for check in constraint.keys() & CHECKS.keys()
        if not CHECKS[check](value, constraint[check])
    }


# --------------------------------------------------------------------------------- the template


def test_the_template_meets_the_documented_requirements() -> None:
    assert violations(TEMPLATE, SETTINGS) == set()


def test_constraints_are_of_a_known_kind_and_have_a_source() -> None:
    for constraint in CONSTRAINTS:
        kinds = constraint.keys() - {"type", "at", "source"}
        assert kinds
        assert kinds <= CHECKS.keys()
        assert constraint["source"].startswith("https://docs.aws.amazon.com/")


def test_every_type_of_resource_is_looked_up() -> None:
    types = {resource["Type"] for resource in TEMPLATE["Resources"].values()}
    assert types | {"Template", "Definition"} == {constraint["type"] for constraint in CONSTRAINTS}


def test_every_constraint_is_about_something_that_is_there() -> None:
    idle = [
        (constraint["type"], constraint["at"])
        for constraint in CONSTRAINTS
        if not any(
            True
            for setting in SETTINGS[:1]
            for kind, _, properties in resources(TEMPLATE, setting)
            if kind == constraint["type"]
            for _ in at(properties, constraint["at"])
        )
    ]
    assert idle == []


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the template with something else at a path, or appended to what stands there."""
    template: dict[str, Any] = copy.deepcopy(TEMPLATE)
    *parents, last = path.removesuffix("[]").split(".")
    place = template["Resources"]
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    if path.endswith("[]"):
        place[last].append(value)
    elif value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return template


RULES: Final = "Bucket.Properties.LifecycleConfiguration.Rules"
ENCRYPTION: Final = "Bucket.Properties.BucketEncryption.ServerSideEncryptionConfiguration.0"
MARKERS: Final = {
    "Id": "DeleteLoneDeleteMarkers",
    "Status": "Enabled",
    "Prefix": "rounds/",
    "ExpiredObjectDeleteMarker": True,
}


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (f"{RULES}[]", MARKERS, r"Bucket\.LifecycleConfiguration\.Rules\[\]: at_least_one"),
        (
            f"{RULES}[]",
            MARKERS | {"ExpirationInDays": 9, "Id": "Both"},
            r"Rules\[\]: at_most_one .*'ExpiredObjectDeleteMarker', 'ExpirationInDays'",
        ),
        (f"{RULES}.0.Id", "DeletePrunedModels", r"Rules: unique Id"),
        (
            f"{RULES}.0.NoncurrentVersionExpiration",
            {},
            r"Expiration: at_least_one .*NoncurrentDays",
        ),
        ("Bucket.Properties.VersioningConfiguration", ABSENT, "needs .*VersioningConfiguration"),
        (f"{ENCRYPTION}.ServerSideEncryptionByDefault.KMSMasterKeyID", "k", "only_with"),
        ("PlanRoundFunction.Properties.Description", "d" * 257, "max_length 256"),
        ("PlanRoundFunction.Properties.Timeout", 901, "range"),
        ("PlanRoundFunction.Properties.Environment.Variables.AWS_REGION", "r", "no_keys"),
        ("PlanRoundFunction.Properties.Environment.Variables._X", "x", "Variables: keys"),
        ("PlanRoundFunction.Properties.Environment.Variables.LONG", "x" * 4000, "max_chars 4096"),
        (
            "ScheduleGroup.Properties.Name",
            {"Fn::Sub": "${AWS::StackName}-of-its-rounds"},
            "pattern",
        ),
        (
            "RoundStateMachine.Properties.StateMachineName",
            {"Fn::Sub": "${AWS::StackName}.round"},
            "StateMachineName: pattern",
        ),
        ("RoundStateMachine.Properties.LoggingConfiguration.Destinations", [], "min_items"),
        ("RoundLogGroup.Properties.RetentionInDays", 10, "one_of"),
        ("ScheduleRole.Properties.Description", "a deadline – no more", "characters"),
        ("RoundFailedAlarm.Properties.Period", 90, "multiple_of"),
        ("RoundFailedAlarm.Properties.EvaluationPeriods", 2000, "max_product"),
        ("RoundFailedAlarm.Properties.Statistic", ABSENT, "at_least_one"),
        ("RoundFailedAlarm.Properties.AlarmActions", ["a"] * 6, "max_items"),
        ("Dashboard.Properties.DashboardName", {"Fn::Sub": "${AWS::StackName}.all"}, "pattern"),
        ("UndeliveredEvents.Properties.KmsMasterKeyId", "k", "at_most_one"),
        ("CollectUpdateFunctionUpdateArrived.Properties.RedrivePolicy", {}, "at_least_one"),
        ("CollectUpdateFunctionUpdateArrived.Properties.Protocol", "sqs", "one_of"),
        ("CollectUpdateFunctionUpdateArrivedPermission.Properties.SourceArn", ABSENT, "needs"),
    ],
)
def test_violations_of_the_documentation_are_found(path: str, value: Any, found: str) -> None:
    said = violations(changed(path, value), SETTINGS[-1:])
    assert any(re.search(found, violation) for violation in said)


@pytest.mark.parametrize("parameter", ["RetentionDays", "LogRetentionDays", "AggregatorMemory"])
def test_a_parameter_that_may_be_too_much_is_found(
    parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = {"Type": "Number", "MinValue": 0, "MaxValue": 2**31}
    monkeypatch.setitem(TEMPLATE["Parameters"], parameter, wider)
    assert violations(TEMPLATE, SETTINGS) != set()
