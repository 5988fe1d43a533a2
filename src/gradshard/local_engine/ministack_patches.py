"""The local engine's patches: what MiniStack does otherwise than AWS, corrected while it runs.

Each patch says what AWS does and what MiniStack 1.5.33 does instead. Remove a patch when MiniStack
does the same. The modules ``ministack_*`` have them, by service.
"""

from gradshard.local_engine import (
    ministack_iam,
    ministack_lambda,
    ministack_s3,
    ministack_step_functions,
)


def apply() -> None:
    """Apply all patches, in a process that is an engine."""
    ministack_lambda.apply()
    ministack_iam.apply()
    ministack_s3.apply()
    ministack_step_functions.apply()
