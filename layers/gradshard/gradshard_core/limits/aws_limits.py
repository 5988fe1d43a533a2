"""AWS's limits as numbers, each with its source and the day it was read.

Numbers go stale; this is the one place to change them.
"""

from typing import Final

from gradshard_core.units import MIB

# S3, https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (2026-11)
MIN_PART_BYTES: Final = 5 * MIB
MAX_PART_BYTES: Final = 5 * 1024 * MIB
MAX_PARTS: Final = 10_000
# Entries of a listing's page, be they objects, versions or parts; the same page (2026-11).
LISTED_ENTRIES: Final = 1000

# Requests a second and prefix, "at least 3,500 PUT/COPY/POST/DELETE or 5,500 GET/HEAD",
# read 2026-11 in
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
PREFIX_PUTS: Final = 3500
PREFIX_GETS: Final = 5500

# SNS: messages a second, in the largest region and in the smallest ones,
# https://docs.aws.amazon.com/general/latest/gr/sns.html (2026-11), by way of pages that quote it
TOPIC_MESSAGES: Final = 30_000
LEAST_TOPIC_MESSAGES: Final = 300

# "If an execution runs for more than the 1-year maximum, it will fail" without any Catch, read
# 2026-11 in https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
MAX_EXECUTION_SECONDS: Final = 365 * 24 * 3600
# Events of an execution, at the last of which it fails,
# https://docs.aws.amazon.com/step-functions/latest/dg/bp-history-limit.html (2026-11)
MAX_EVENTS: Final = 25_000

# A stack's name: what is left of a schedule group's, which begins with it, read 2026-11 in
# https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-scheduler-schedulegroup.html
MAX_STACK_NAME: Final = 64 - len("-deadlines")

# Lambda, https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html (2026-11)
CONCURRENT_FUNCTIONS: Final = 1000
MIN_MEMORY_MB: Final = 128
MAX_MEMORY_MB: Final = 10_240
MB_PER_VCPU: Final = 1_769

# Express executions end after five minutes,
# https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html (2026-11).
# A task stays under half of that, so that one retry fits.
MAX_TASK_SECONDS: Final = 140.0

# Step Functions, https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html (2026-11)
MAX_PAYLOAD_BYTES: Final = 256 * 1024
# For how long after an execution's end no other one can have its name,
# https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html (2026-11)
NAME_KEPT_DAYS: Final = 90
# State transitions a second in most regions; the start of a child is one. The same page of quotas.
TRANSITIONS: Final = 800
# Iterations of an inline Map at once,
# https://docs.aws.amazon.com/step-functions/latest/dg/state-map-inline.html (2026-11)
INLINE_ITERATIONS: Final = 40
