"""AWS's prices in us-east-1, and what is charged of a round, each with its source.

Numbers go stale; this is the one place to change them.
"""

from typing import Final

# https://aws.amazon.com/lambda/pricing/ (2026-11)
DOLLARS_PER_GB_SECOND: Final = {"x86_64": 0.0000166667, "arm64": 0.0000133334}
DOLLARS_PER_INVOCATION: Final = 0.20 / 1e6
# https://aws.amazon.com/s3/pricing/ (2026-11); PUT stands for COPY, POST and LIST too.
DOLLARS_PER_PUT: Final = 0.005 / 1e3
DOLLARS_PER_GET: Final = 0.0004 / 1e3
# https://aws.amazon.com/eventbridge/pricing/ (2026-11): custom events, by 64 KB.
DOLLARS_PER_EVENT: Final = 1.00 / 1e6
# https://aws.amazon.com/sns/pricing/ (2026-11): requests to a standard topic, by 64 KB. S3's
# notifications, and deliveries to Lambda, are free.
DOLLARS_PER_NOTIFICATION: Final = 0.50 / 1e6
# https://aws.amazon.com/step-functions/pricing/ (2026-11)
DOLLARS_PER_TRANSITION: Final = 0.025 / 1e3
DOLLARS_PER_EXPRESS_REQUEST: Final = 1.00 / 1e6
DOLLARS_PER_EXPRESS_GB_SECOND: Final = 0.00001667
EXPRESS_MEMORY_GB: Final = 64 / 1024
# Transitions of a round without its levels and tasks: OpenRound, PlanRound, and the end.
ROUND_TRANSITIONS: Final = 3
# Transitions between measuring and adding: PlanAgain, PlanRound.
REPLAN_TRANSITIONS: Final = 2
# Transitions of each further stage of an eager round, besides its tasks': OpenRound, PlanRound, the
# distributed Map, and FinalizeRound.
STAGE_TRANSITIONS: Final = 4
# Transitions of a level without its tasks: the distributed Map, and FinalizeRound.
LEVEL_TRANSITIONS: Final = 2
