"""The local engine's patches: what MiniStack does otherwise than AWS, corrected while it runs.

Each patch says what AWS does and what MiniStack 1.5.33 does instead. Remove a patch when MiniStack
does the same. The modules ``engine_*_patches`` have them, by service.
"""

from gradshard.deployment import (
    engine_iam_patches,
    engine_lambda_patches,
    engine_s3_patches,
    engine_step_functions_patches,
)


def apply() -> None:
    """Apply all patches, in a process that is an engine."""
    engine_lambda_patches.apply()
    engine_iam_patches.apply()
    engine_s3_patches.apply()
    engine_step_functions_patches.apply()
