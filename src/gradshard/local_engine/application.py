"""The application on a local engine: built and deployed to it by `sam`."""

import json
import platform
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from botocore.config import Config

from gradshard.aws.boto_client import connect
from gradshard.deployment import application_sources, sam_command
from gradshard.deployment.defaults import KEEPER_STACK, STACK
from gradshard.local_engine.process_control import child_environment, tail_of
from gradshard.local_engine.running_engines import Engine, has_application, session, url_of
from gradshard.local_engine.sam_build import Build, find_or_make_build
from gradshard_core.errors import EngineError

Progress = Callable[[str], None]

# The template in the application's folder, and what it makes.
_STACKS: Final = {
    STACK: (Path("template.yaml"), "the application"),
    KEEPER_STACK: (application_sources.KEEPER, "the mask keeper"),
}
_UPDATE_SECONDS: Final = 120


def deploy_if_changed(engine: Engine, progress: Progress, *, keeper: bool = False) -> None:
    """Build and deploy the application, unless the engine has the same one already.

    With ``keeper``, also the mask keeper, as a stack of its own. Each stack has its own roles,
    though both are in one account.

    Raises
    ------
    EngineError
        `sam` failed.
    """
    fingerprint = application_sources.fingerprint()
    deployed = engine.state / "deployed"
    known = [fingerprint, f"{fingerprint} {KEEPER_STACK}"]
    is_same = deployed.exists() and deployed.read_text() in known[keeper:]
    if is_same and has_application(engine):
        return
    deployed.unlink(missing_ok=True)
    _deploy(engine, STACK, progress)
    if keeper:
        _deploy(engine, KEEPER_STACK, progress, AggregatorBucket=_bucket_of(engine, STACK))
        _update(engine, KeeperBucket=_bucket_of(engine, KEEPER_STACK))
    deployed.write_text(known[keeper])


def find_or_build(engine: Engine, stack: str, progress: Progress) -> Build:
    """Return the build of a stack, made by `sam` if the user's cache has none.

    Raises
    ------
    EngineError
        `sam` failed.
    """
    template, name = _STACKS[stack]

    def build(sources: Path, arguments: list[str]) -> None:
        progress(f"building {name}")
        _run_sam(engine, sources, "build", *arguments)

    return find_or_make_build(template, build)


def _deploy(engine: Engine, stack: str, progress: Progress, **parameters: str) -> None:
    build = find_or_build(engine, stack, progress)
    progress(f"deploying {_STACKS[stack][1]}")
    arguments = ["--template-file", str(build.deployed_template), "--stack-name", stack]
    _run_sam(engine, build.sources, "deploy", *arguments, **parameters)


def _update(engine: Engine, **parameters: str) -> None:
    """Change parameters of the deployed aggregator."""
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    [found] = formation.describe_stacks(StackName=STACK)["Stacks"]
    values = {each["ParameterKey"]: each["ParameterValue"] for each in found["Parameters"]}
    if values.items() >= parameters.items():
        return  # CloudFormation rejects an update that changes nothing
    changed: list[Any] = [
        {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
    ]
    same: list[Any] = [
        {"ParameterKey": parameter["ParameterKey"], "UsePreviousValue": True}
        for parameter in found["Parameters"]
        if parameter["ParameterKey"] not in parameters
    ]
    formation.update_stack(
        StackName=STACK,
        UsePreviousTemplate=True,
        Parameters=[*changed, *same],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    waiter = formation.get_waiter("stack_update_complete")
    waiter.wait(StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": _UPDATE_SECONDS})


def _bucket_of(engine: Engine, stack: str) -> str:
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    [found] = formation.describe_stacks(StackName=stack)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}
    return str(outputs["BucketName"])


def write_container_settings(engine: Engine, address: str, progress: Progress) -> None:
    """Write what `sam local invoke` needs to run a function in a container, with this engine.

    A container has this machine's processor, reaches the engine at another address than this
    machine, and its function needs the variables that the deployed one has.
    """
    formation = connect(session(engine), "cloudformation", Config(), engine.url)
    functions = connect(session(engine), "lambda", Config(), engine.url)
    at = url_of(address, engine.port)
    variables = {}
    for resource in formation.describe_stack_resources(StackName=STACK)["StackResources"]:
        if resource["ResourceType"] == "AWS::Lambda::Function":
            name = resource["PhysicalResourceId"]
            found = functions.get_function_configuration(FunctionName=name)["Environment"]
            variables[resource["LogicalResourceId"]] = found["Variables"] | {"AWS_ENDPOINT_URL": at}
    file = engine.folder / "variables.json"
    file.write_text(json.dumps(variables, indent=2))
    build = find_or_build(engine, STACK, progress)
    parameters = template_parameters(build.sources / "samconfig.toml", engine, at)
    settings = {
        "template_file": str(build.template),
        "env_vars": str(file),
        "parameter_overrides": parameters,
    }
    # JSON's strings and lists are TOML's too.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    head = ["version = 0.1", "[default.local_invoke.parameters]"]
    engine.container_settings.write_text("\n".join([*head, *lines, ""]))


def _run_sam(
    engine: Engine, sources: Path, command: str, *arguments: str, **parameters: str
) -> None:
    """Run one `sam` command with the application's `local` environment against the engine."""
    config = sources / "samconfig.toml"
    line = [sam_command.find_sam(), command]
    line += ["--config-file", str(config), "--config-env", "local", *arguments]
    line += ["--parameter-overrides", *template_parameters(config, engine)]
    line += [f"{name}={value}" for name, value in parameters.items()]
    with (engine.folder / "sam.log").open("a") as log:
        log.write(f"$ {' '.join(line)}\n")
        log.flush()
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            line,
            cwd=sources,
            env=child_environment(engine),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        failed = f"`sam {command}` failed; the end of {log.name}:\n{tail_of(Path(log.name))}"
        if command == "deploy" and not engine.ephemeral:
            # The files of sam's own bucket may be damaged, which its errors do not say.
            failed += (
                f"\nIf that does not help: `{engine.stop_command} --delete` deletes what it "
                f"keeps, rounds and models too; then `{engine.start_command}` deploys anew"
            )
        raise EngineError(failed)


def template_parameters(config: Path, engine: Engine, endpoint: str = "") -> list[str]:
    """Return the environment's template parameters, with this machine's processor and engine.

    ``endpoint`` is where functions reach the engine, if not where this machine does.
    """
    environment = tomllib.loads(config.read_text())["local"]["global"]["parameters"]
    parameters = dict(pair.split("=", 1) for pair in environment["parameter_overrides"])
    arm = platform.machine() in {"aarch64", "arm64"}
    parameters |= {
        "Architecture": "arm64" if arm else "x86_64",
        "EndpointUrl": endpoint or engine.url,
    }
    return [f"{name}={value}" for name, value in parameters.items()]
