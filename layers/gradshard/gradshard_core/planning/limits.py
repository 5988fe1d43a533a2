"""AWS's limits, prices and speeds as numbers, each with its source and the day it was read.

Numbers go stale; this is the one place to change them. Prices are us-east-1's.
"""

from typing import Final

from gradshard_core.units import MIB

# S3, https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (2026-11)
MIN_PART_BYTES: Final = 5 * MIB
MAX_PART_BYTES: Final = 5 * 1024 * MIB
MAX_PARTS: Final = 10_000
# Entries of a listing's page, be they objects, versions or parts; the same page (2026-11).
LISTED_ENTRIES: Final = 1000

# A stack's name: what is left of a schedule group's, which begins with it, read 2026-11 in
# https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-scheduler-schedulegroup.html
MAX_STACK_NAME: Final = 64 - len("-deadlines")

# Lambda, https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html (2026-11)
MIN_MEMORY_MB: Final = 128
MAX_MEMORY_MB: Final = 10_240
MB_PER_VCPU: Final = 1_769
# Sizes worth comparing, from the smallest to the largest of a new account.
MEMORIES_MB: Final = (MIN_MEMORY_MB, 192, 256, 384, 512, 1024, MB_PER_VCPU, 3008)

# Express executions end after five minutes,
# https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html (2026-11).
# A task stays under half of that, so that one retry fits.
MAX_TASK_SECONDS: Final = 140.0

# Step Functions, https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html (2026-11)
MAX_PAYLOAD_BYTES: Final = 256 * 1024
# For how long after an execution's end no other one can have its name,
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html (2026-11)
NAME_KEPT_DAYS: Final = 90
# The output of a distributed Map has an entry for each child: an empty object and a comma.
MAX_CHILDREN: Final = MAX_PAYLOAD_BYTES // len("{},")
# Iterations of an inline Map at once,
# https://docs.aws.amazon.com/step-functions/latest/dg/state-map-inline.html (2026-11)
INLINE_ITERATIONS: Final = 40

# Network of a function: sustained rate whatever its memory, after a burst (Bodner et al.,
# arXiv 2501.07771, measured 2024). Of the 300 MiB of burst, half comes only once per environment.
SUSTAINED_BYTES_PER_SECOND: Final = 75 * MIB
BURST_BYTES_PER_SECOND: Final = 1024 * MIB
BURST_BYTES: Final = 300 * MIB

# From a request to S3 to its first byte: "roughly 100–200 milliseconds",
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html (2026-11).
REQUEST_SECONDS: Final = 0.1

# Assumed, not measured on AWS: from the start of a task to its first byte, warm.
TASK_START_SECONDS: Final = 0.2
# Assumed: the machine's transitions and the small functions around the tasks.
ROUND_OVERHEAD_SECONDS: Final = 1.5
# Assumed: from the end of a level's last task to the start of the next level's first.
LEVEL_OVERHEAD_SECONDS: Final = 0.3
# Assumed: 0.3 s of each of the small functions, at the template's memory sizes.
COLLECT_GB_SECONDS: Final = 472 / 1024 * 0.3
ROUND_GB_SECONDS: Final = (256 + 472 + 256) / 1024 * 0.3  # open_round, plan_round, finalize_round

# What Lambda does before a cold start's first invocation, which is billed as that is: since
# 2025-08-01 for functions of .zip files, too,
# https://aws.amazon.com/blogs/compute/aws-lambda-standardizes-billing-for-init-phase (2026-11).
# Importing the handler, at the processor's share that the memory gives: aggregate_shard's 0.13
# CPU-seconds (docs/performance.md) and the small functions' 0.15
# (docs/decisions/0008-no-boto3-in-functions.md). Assumed: 0.1 s of the runtime's own.
RUNTIME_INIT_SECONDS: Final = 0.1
TASK_INIT_CPU_SECONDS: Final = 0.13
SMALL_INIT_CPU_SECONDS: Final = 0.15
# Of the functions around a round that start cold: open_round, plan_round, finalize_round, and
# collect_update, once for the arrivals and once for the deadline.
SMALL_MEMORIES_MB: Final = (256, 472, 256, 472, 472)

# CPU seconds per GB of client bytes of a whole task over HTTPS, 1.15 to 1.26 in docs/performance.md
# (make bench, 2-core x86-64 machine, 2026-11).
CPU_SECONDS_PER_GB: Final = 1.2

# CPU seconds per GB of elements that a task decodes and adds, beyond those of the bytes it reads.
DECODING_CPU_SECONDS_PER_GB: Final = 0.3

# The same of a task that holds a block of every input at once, which sorts columns or measures.
ROWS_CPU_SECONDS_PER_GB: Final = 2.5

# The same of a private sum beyond those of a sum, and CPU seconds per GB of its result for noise.
PRIVATE_CPU_SECONDS_PER_GB: Final = 0.3
NOISE_CPU_SECONDS_PER_GB: Final = 12.4

# https://aws.amazon.com/lambda/pricing/ (2026-11)
DOLLARS_PER_GB_SECOND: Final = {"x86_64": 0.0000166667, "arm64": 0.0000133334}
DOLLARS_PER_INVOCATION: Final = 0.20 / 1e6
# https://aws.amazon.com/s3/pricing/ (2026-11); PUT stands for COPY, POST and LIST too.
DOLLARS_PER_PUT: Final = 0.005 / 1e3
DOLLARS_PER_GET: Final = 0.0004 / 1e3
# https://aws.amazon.com/eventbridge/pricing/ (2026-11): S3's events are "AWS opt-in data events",
# priced as custom ones, by 64 KB.
DOLLARS_PER_EVENT: Final = 1.00 / 1e6
# Events of an object that lifecycle rules delete in the end: created, a delete marker, deleted for
# good, https://docs.aws.amazon.com/AmazonS3/latest/userguide/EventBridge.html and
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-configure-notification.html
# (2026-11).
EVENTS_PER_EXPIRING_OBJECT: Final = 3
# https://aws.amazon.com/step-functions/pricing/ (2026-11)
DOLLARS_PER_TRANSITION: Final = 0.025 / 1e3
DOLLARS_PER_EXPRESS_REQUEST: Final = 1.00 / 1e6
DOLLARS_PER_EXPRESS_GB_SECOND: Final = 0.00001667
EXPRESS_MEMORY_GB: Final = 64 / 1024
# Transitions of a round without its levels and tasks: round.asl.json's states on the straight path.
ROUND_TRANSITIONS: Final = 6
# Transitions of finalizing and planning once more, between measuring and adding.
REPLAN_TRANSITIONS: Final = 3
# Assumed: the small functions between measuring and adding.
REPLAN_OVERHEAD_SECONDS: Final = 1.0
REPLAN_GB_SECONDS: Final = (0.5 + 0.25) * 0.3  # plan_round, finalize_round
# Transitions of a level without its tasks: the distributed Map, and the choice of a next level.
LEVEL_TRANSITIONS: Final = 2
