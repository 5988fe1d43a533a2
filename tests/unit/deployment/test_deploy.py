"""Deploying: where the application and its tools are, and what `sam` is told."""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradshard.cli import main
from gradshard.client.stack import Stack
from gradshard.deployment import application_sources, deploy, lambda_layer_build, user_config
from gradshard.deployment.deploy import parse_options
from gradshard.local_engine import lifecycle
from gradshard_core.errors import DeployError, EngineError

SAM = """\
#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > "{log}.$1"
exit {code}
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tools that is the whole path."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    return folder


def add_tool(folder: Path, name: str, text: str = "#!/bin/sh\nexit 0\n") -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def sam(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `sam` that keeps what it was told; the current folder is empty."""
    add_tool(tools, "sam", SAM.format(log=tmp_path / "told", code=0))
    add_tool(tools, "python3.13")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return tmp_path


def answers(sam: Path) -> Path:
    """Where the guide's answers are."""
    path = sam / "config" / "gradshard" / "deploy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def told(sam: Path, command: str) -> list[str]:
    return (sam / f"told.{command}").read_text().splitlines()


def test_building_and_deploying_have_the_same_parameters(sam: Path) -> None:
    deploy.deploy(["--stack-name", "x", "--parameter-overrides", "Architecture=x86_64", "A=1 B="])
    for command in ("build", "deploy"):
        words = told(sam, command)
        start = words.index("--parameter-overrides") + 1
        assert words[start : start + 3] == ['Architecture="x86_64"', 'A="1"', 'B=""']
    assert told(sam, "deploy")[-2:] == ["--stack-name", "x"]
    assert "--stack-name" not in told(sam, "build")


def test_without_parameters_the_templates_processor_is_built_for(sam: Path) -> None:
    deploy.deploy([])
    assert 'Architecture="arm64"' in told(sam, "build")


def test_saved_answers_are_built_for_and_new_ones_win(sam: Path) -> None:
    answers(sam).write_text(
        "version = 0.1\n[default.deploy.parameters]\n"
        'parameter_overrides = "Architecture=\\"x86_64\\" RetentionDays=\\"9\\""\n'
    )
    deploy.deploy(["--parameter-overrides=RetentionDays=12"])
    words = told(sam, "build")
    assert {'Architecture="x86_64"', 'RetentionDays="12"'} <= set(words)
    assert words[words.index("--config-file") + 1] == str(answers(sam))


def test_another_applications_settings_are_left_alone(sam: Path) -> None:
    Path("samconfig.toml").write_text('[default.global.parameters]\nstack_name = "theirs"\n')
    deploy.deploy([])
    config = Path(told(sam, "deploy")[told(sam, "deploy").index("--config-file") + 1])
    assert config.parent != Path.cwd()
    assert not answers(sam).exists()


def test_the_guide_keeps_its_answers_in_the_users_folder_and_none_in_this(sam: Path) -> None:
    deploy.deploy(["--guided"])
    words = told(sam, "deploy")
    assert words[words.index("--config-file") + 1] == str(answers(sam))
    assert "CAPABILITY_IAM" in answers(sam).read_text()
    assert list(Path.cwd().iterdir()) == []


def test_the_guide_keeps_its_answers_in_the_file_that_is_named(sam: Path) -> None:
    deploy.deploy(["--guided", "--config-file", "team/deploy.toml"])
    words = told(sam, "deploy")
    assert words[words.index("--config-file") + 1] == str(Path.cwd() / "team" / "deploy.toml")
    assert "CAPABILITY_IAM" in Path("team/deploy.toml").read_text()
    assert not answers(sam).exists()


@pytest.mark.parametrize("is_guided", [False, True])
def test_the_keeper_is_another_stack_with_answers_of_its_own(sam: Path, is_guided: bool) -> None:
    answers(sam).write_text('version = 0.1\n[default.global.parameters]\nstack_name = "ours"\n')
    deployed = deploy.deploy(["--guided"] if is_guided else [], keeper=True)
    assert deployed.stack == "gradshard-keeper"
    words = told(sam, "build")
    assert words[words.index("--template-file") + 1].endswith("keeper/template.yaml")
    assert words[words.index("--config-env") + 1] == "keeper"
    config = words[words.index("--config-file") + 1]
    assert config != str(answers(sam))
    assert (config == str(answers(sam).with_name("deploy-keeper.toml"))) is is_guided


def test_a_named_file_that_is_not_there_is_an_error(sam: Path) -> None:
    with pytest.raises(DeployError, match=r"typo\.toml cannot be read: No such file"):
        deploy.deploy(["--config-file", "typo.toml"])
    assert not (sam / "told.build").exists()


def test_a_stack_is_tagged_unless_other_tags_are_given() -> None:
    """CloudFormation hands a stack's tags on to its resources; options win over the file."""
    shipped = tomllib.loads(application_sources.files()[Path("samconfig.toml")].read_text())
    assert shipped["default"]["deploy"]["parameters"]["tags"] == "project=gradshard"


def test_answering_the_guide_with_another_processor_is_an_error(sam: Path, tools: Path) -> None:
    answered = 'printf "[default.deploy.parameters]\\nparameter_overrides = '
    answered += f"'Architecture=x86_64'\" > {answers(sam)}"
    add_tool(tools, "sam", f'#!/bin/sh\n[ "$1" = build ] || {answered}\n')
    with pytest.raises(DeployError, match=r"answered x86_64.*built for arm64.*once more"):
        deploy.deploy(["-g"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameter-overrides"], "--parameter-overrides lacks its value"),
        (["--config-env"], "--config-env lacks its value"),
        (["--parameter-overrides", "Architecture"], "'Architecture' is not of the form NAME=VALUE"),
        (["--parameter-overrides", 'A="x'], "cannot be read"),
        (["--parameter-overrides", "ParameterKey=A,ParameterValue=b"], "NAME=VALUE"),
        (["-t", "other.yaml"], "-t is not for `gradshard deploy`"),
        (["--template-file=x"], "--template-file is not for `gradshard deploy`"),
    ],
)
def test_options_that_make_no_sense_are_rejected(arguments: list[str], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        parse_options(arguments)


def test_other_options_are_passed_on_in_their_order() -> None:
    given = ["--region", "eu-west-1", "--config-env", "prod", "--tags", "a=1", "b=2", "-g"]
    options = parse_options(given)
    assert options.environment == "prod"
    assert options.rest == ("--region", "eu-west-1", "--tags", "a=1", "b=2", "-g")
    assert options.guided


def test_settings_that_are_not_toml(sam: Path) -> None:
    answers(sam).write_text("stack_name: x\n")
    with pytest.raises(DeployError, match=r"deploy\.toml is not TOML"):
        deploy.deploy([])


def test_a_failing_sam_is_an_error_and_nothing_is_deployed(sam: Path, tools: Path) -> None:
    add_tool(tools, "sam", SAM.format(log=sam / "told", code=3))
    with pytest.raises(DeployError, match=r"`sam build` failed \(exit code 3\)"):
        deploy.deploy([])
    assert not (sam / "told.deploy").exists()


# ----------------------------------------------------------------- where the stack is, from then on

GUIDED = """\
#!/bin/sh
[ "$1" = build ] && > {answers}.built && exit 0
cat > {answers} <<END
[default.global.parameters]
region = "eu-central-1"
[default.deploy.parameters]
stack_name = "{stack}"
region = "eu-central-1"
profile = "team"
END
exit {code}
"""


def test_the_region_that_the_guide_was_answered_is_remembered_with_the_stack(
    sam: Path, tools: Path
) -> None:
    add_tool(tools, "sam", GUIDED.format(answers=answers(sam), stack="fed", code=0))
    add_tool(tools, "cat", '#!/bin/sh\nexec /bin/cat "$@"\n')
    deployed = deploy.deploy(["--guided"])
    assert deployed.variables == {"AWS_PROFILE": "team", "AWS_DEFAULT_REGION": "eu-central-1"}
    assert deployed == ("fed", "eu-central-1", "team")
    assert user_config.region_of("fed") == "eu-central-1"
    assert user_config.region_of("gradshard") is None


def test_options_count_before_answers_and_answers_before_settings(
    sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert deploy.deploy([]) == ("gradshard", "us-west-2", None)
    answers(sam).write_text('[default.global.parameters]\nregion = "eu-west-1"\n')
    assert deploy.deploy([]).region == "eu-west-1"
    given = deploy.deploy(["--region=ap-south-1", "--stack-name", "s", "--profile", "p"])
    assert given == ("s", "ap-south-1", "p")
    assert user_config.region_of("gradshard") == "eu-west-1"
    assert user_config.region_of("s") == "ap-south-1"


def test_variables_that_are_set_are_not_listed_for_export(
    sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert deploy.deploy([]).variables == {}
    assert deploy.deploy(["--region", "eu-west-1"]).variables == {"AWS_DEFAULT_REGION": "eu-west-1"}


def test_the_command_prints_the_next_commands(sam: Path) -> None:
    done = CliRunner().invoke(main, ["deploy", "--stack-name", "fed", "--region", "eu-west-1"])
    assert done.exit_code == 0, done.output
    assert done.output == (
        "\nstack fed is deployed to eu-west-1\n"
        "  export AWS_DEFAULT_REGION=eu-west-1\n"
        "try it:     gradshard open r1 --client alice --client bob --stack fed\n"
        "remove it:  sam delete --stack-name fed --region eu-west-1 --no-prompts\n"
    )


def test_a_stack_is_looked_for_where_it_was_deployed(sam: Path) -> None:
    user_config.remember_region("fed", "eu-west-1")
    assert region_of("fed") == "eu-west-1"
    assert region_of("other") is None


def test_a_region_that_is_set_counts_before_the_remembered_one(
    sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_config.remember_region("fed", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert region_of("fed") == "us-west-2"


def region_of(name: str) -> str | None:
    stack = Stack(name, bucket=None, state_machine=None, endpoint_url=None, port=None)
    region: str | None = stack._session.get_config_variable("region")
    return region


def test_an_unreadable_file_of_regions(sam: Path) -> None:
    (answers(sam).parent / "stacks.json").write_text("[]")
    with pytest.raises(DeployError, match=r"stacks\.json does not say .* remove it"):
        user_config.region_of("fed")


def test_a_folder_that_cannot_be_written(sam: Path) -> None:
    (sam / "config").write_text("a file")
    with pytest.raises(DeployError, match=r"deploy\.toml cannot be written"):
        deploy.deploy(["--guided"])
    with pytest.raises(DeployError, match=r"stacks\.json cannot be written"):
        deploy.deploy(["--region", "eu-west-1"])


@pytest.mark.parametrize("given", [True, False])
def test_a_stacks_name_that_is_too_long_is_rejected(sam: Path, tools: Path, given: bool) -> None:
    name = "x" * 55
    add_tool(tools, "cat", '#!/bin/sh\nexec /bin/cat "$@"\n')
    add_tool(tools, "sam", GUIDED.format(answers=answers(sam), stack=name, code=1 - given))
    with pytest.raises(DeployError, match=r"has 55 characters: .* leave 54; give a shorter"):
        deploy.deploy(["--stack-name", name] if given else ["--guided"])
    assert answers(sam).with_name("deploy.toml.built").exists() is not given
    if not given:
        # The guide asks again.
        add_tool(tools, "sam", GUIDED.format(answers=answers(sam), stack="short", code=0))
        assert deploy.deploy(["--guided"]).stack == "short"


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ({}, "`sam` is not installed"),
        ({"sam": 0}, r"python3\.13 is not on the path"),
        ({"sam": 0, "python3.13": 1}, r"python3\.13 cannot run pip"),
    ],
)
def test_missing_tools_are_named(tools: Path, present: dict[str, int], message: str) -> None:
    for name, code in present.items():
        add_tool(tools, name, f"#!/bin/sh\nexit {code}\n")
    with pytest.raises(DeployError, match=message):
        deploy.deploy([])


def test_the_local_engine_needs_the_functions_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_layer_build, "RUNTIME", "3.99")
    with pytest.raises(EngineError, match=r"Python 3\.\d+\.\d+, and they need 3\.99"):
        lifecycle.up(0)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as a wheel installs it, from which ``application_sources`` reads."""
    site = tmp_path / "site-packages"
    package, core = site / "gradshard", site / "gradshard_core"
    for file in (
        core / "__init__.py",
        package / "app/template.yaml",
        package / "app/functions/f/app.py",
        package / "app/f.pyc",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    monkeypatch.setattr(application_sources, "_PACKAGE", package)
    monkeypatch.setattr(application_sources, "_CARRIED", package / "app")
    monkeypatch.setattr(application_sources, "_CORE", core)
    return site


def test_an_installed_application_is_put_together_and_removed_again(wheel: Path) -> None:
    assert application_sources.checkout() is None
    with application_sources.folder() as folder:
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "template.yaml",
        "functions/f/app.py",
        "layers/gradshard/gradshard_core/__init__.py",
    }
    assert not folder.exists()


def test_the_fingerprint_is_of_all_that_is_deployed(wheel: Path) -> None:
    before = application_sources.fingerprint()
    (wheel / "gradshard" / "app" / "f.pyc").write_text("made by the interpreter")
    assert application_sources.fingerprint() == before
    (wheel / "gradshard_core" / "__init__.py").write_text("other code")
    assert application_sources.fingerprint() != before


def test_a_package_without_the_application(wheel: Path) -> None:
    shutil.rmtree(wheel / "gradshard" / "app")
    with pytest.raises(DeployError, match=r"no application beside the package"):
        application_sources.files()


def test_the_extra_local_includes_the_extra_deploy() -> None:
    root = application_sources.checkout()
    if root is None:
        pytest.skip("the wheel does not carry pyproject.toml")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras["deploy"]) < set(extras["local"])
    assert not any("ministack" in package for package in extras["deploy"])
