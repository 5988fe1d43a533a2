"""A stack of its own with a KMS key: whole rounds where an ETag says nothing of an object's bytes.

The engine encrypts nothing, asks no KMS key's policy, and applies no bucket's encryption from a
template; the test gives the bucket what the template says. What it does as S3: every object has the
key's headers, and an ETag that is not the MD5 of its bytes.
"""

import hashlib
import subprocess
from collections.abc import Iterator
from typing import Any

import boto3
import numpy as np
import pytest

from gradshard import Federation
from gradshard.client.round_by_ticket import TicketRound
from gradshard.deployment import sam_command
from gradshard.local_engine import application, lifecycle, process_control
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import RoundStateError, TicketError
from tests import reference
from tests.e2e.deployed import Deployed, send_unchecked

pytestmark = pytest.mark.e2e

SECONDS = 120
STACK = "encrypted"
Update = dict[str, reference.Array]


@pytest.fixture(scope="module")
def key(engine: Engine) -> str:
    """A key of one's own."""
    return str(boto3.client("kms").create_key()["KeyMetadata"]["Arn"])


@pytest.fixture(scope="module")
def stack(engine: Engine, key: str) -> Iterator[Deployed]:
    """The application under that key."""
    build = application.find_or_build(engine, lifecycle.STACK, print)
    config = build.sources / "samconfig.toml"
    given = [*application.template_parameters(config, engine), f"KmsKeyArn={key}"]
    line = [
        sam_command.find_sam(),
        "deploy",
        "--template-file",
        str(build.deployed_template),
    ]
    line += ["--config-file", str(config), "--config-env", "local", "--stack-name", STACK]
    done = subprocess.run(
        [*line, "--parameter-overrides", *given],
        cwd=build.sources,
        env=process_control.child_environment(engine),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    deployed = Deployed.of_stack(STACK)
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}
    rules: Any = {"Rules": [rule]}
    deployed.s3.put_bucket_encryption(
        Bucket=deployed.bucket, ServerSideEncryptionConfiguration=rules
    )
    yield deployed
    # Its alarms, roles and functions are not those that other tests look at.
    boto3.client("cloudformation").delete_stack(StackName=STACK)


def update(seed: int) -> Update:
    return {"w": np.random.default_rng(seed).standard_normal(500, np.float32)}


def test_a_whole_round(stack: Deployed, key: str) -> None:
    """Five clients, one by ticket, one with NaN, over two levels of partial sums."""
    federation = Federation(stack=STACK)
    names = list("abcde")
    round_ = federation.open_round("kms", names, topology="lambda_fl", timeout=600)
    updates = {name: update(number) for number, name in enumerate(names)}
    updates["d"]["w"][7] = np.nan
    ticket = TicketRound(round_.ticket("b", max_bytes=100_000))
    ticket.submit(updates["b"], samples=2)
    # Before there is a plan, the same again by a ticket is known too.
    ticket.submit(updates["b"], samples=2)
    with pytest.raises(TicketError, match="was used already"):
        ticket.submit(updates["a"], samples=2)
    for name in "acde":
        send_unchecked(round_, name, updates[name], samples=1)
    manifest = round_.wait(SECONDS)

    assert [rejection["client"] for rejection in manifest["rejected"]] == ["d"]
    assert manifest["attempts"] == 2
    counted = ["a", "b", "c", "e"]
    tree = [int(size) for size in manifest["order"].removeprefix("tree:").split(",")]
    expected = reference.average([updates[n] for n in counted], [1, 2, 1, 1], tree=tree)
    for fetched in (round_.fetch(), ticket.fetch()):
        assert fetched["w"].tobytes() == expected["w"].tobytes()

    # After the manifest, partial sums are deleted.
    assert stack.ended("kms")["status"] == "SUCCEEDED"
    for name in stack.keys(round_.keys.root):
        head = stack.s3.head_object(Bucket=stack.bucket, Key=name)
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key), name
        md5 = hashlib.md5(stack.read(name), usedforsecurity=False).hexdigest()
        assert head["ETag"].strip('"') != md5, name

    # After the planning, too: what counts already is no error, what does not is one.
    round_.submit("a", updates["a"], samples=1)
    ticket.submit(updates["b"], samples=2)
    with pytest.raises(RoundStateError, match="takes no more updates"):
        round_.submit("a", updates["c"], samples=1)
