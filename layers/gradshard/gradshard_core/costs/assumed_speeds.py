"""Speeds of functions and of the services around them: measured, published or assumed.

Numbers go stale; this is the one place to change them.
"""

from typing import Final

from gradshard_core.units import MIB

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
COLLECT_SECONDS: Final = 0.3
COLLECT_GB_SECONDS: Final = 256 / 1024 * COLLECT_SECONDS
ROUND_GB_SECONDS: Final = (256 + 472 + 256) / 1024 * 0.3  # open_round, plan_round, finalize_round

# The work of Lambda before a cold start's first invocation is billed as that is: since
# 2025-08-01 for functions of .zip files, too,
# https://aws.amazon.com/blogs/compute/aws-lambda-standardizes-billing-for-init-phase (2026-11).
# Importing the handler, at the processor's share that the memory gives: aggregate_shard's 0.13
# CPU-seconds (docs/performance.md) and the small functions' 0.15
# (docs/decisions/0008-no-boto3-in-functions.md). Assumed: 0.1 s of the runtime's own.
RUNTIME_INIT_SECONDS: Final = 0.1
TASK_INIT_CPU_SECONDS: Final = 0.13
SMALL_INIT_CPU_SECONDS: Final = 0.15
# Of the functions around a round that start cold: open_round, collect_update, plan_round and
# finalize_round.
SMALL_MEMORIES_MB: Final = (256, 256, 472, 256)

# CPU seconds per GB of client bytes of a whole task over HTTPS, 1.15 to 1.26 in docs/performance.md
# (make bench, 2-core x86-64 machine, 2026-11).
CPU_SECONDS_PER_GB: Final = 1.2

# CPU seconds per GB of elements that a task decodes and adds, beyond those of the bytes it reads.
# Measured: a task of compressed updates takes 0.51 (int8), 0.59 (fp8), 0.47 (int4) and 0.21 (topk
# of 1 %) of the CPU seconds of one of F32.
DECODING_CPU_SECONDS_PER_GB: Final = 0.3

# The same of a task that holds a block of every input at once, which sorts columns or measures.
ROWS_CPU_SECONDS_PER_GB: Final = 2.5

# The same of a private sum beyond those of a sum, and CPU seconds per GB of its result for noise.
PRIVATE_CPU_SECONDS_PER_GB: Final = 0.3
NOISE_CPU_SECONDS_PER_GB: Final = 12.4
# Assumed: the small functions between measuring and adding.
REPLAN_OVERHEAD_SECONDS: Final = 1.0
REPLAN_GB_SECONDS: Final = (0.5 + 0.25) * 0.3  # plan_round, finalize_round

# Planning and finalizing a surveyed round, S3 in memory: 7.1 CPU-seconds for 100,000 clients
# (python -m benchmarks.large_round 100000, 2-core x86-64 machine, 2026-11).
PLAN_CPU_SECONDS_PER_CLIENT: Final = 7.1e-5
PLAN_MEMORY_MB: Final = 472
# A rule that clips adds 3.6 CPU-seconds (with --terms '{"rule": "norm_clip"}'), and assignments
# add 5.4 (with --terms '{"assignments": …}').
DECIDE_CPU_SECONDS_PER_CLIENT: Final = 3.6e-5
ASSIGN_CPU_SECONDS_PER_CLIENT: Final = 5.4e-5
FINALIZE_MEMORY_MB: Final = 256
FINALIZE_TIMEOUT_SECONDS: Final = 900.0
# Reading a task's report over HTTPS, of a whole processor (benchmarks/results.md, "Large updates").
REPORT_CPU_SECONDS: Final = 3.3e-4
# Assumed: the processor time of a small request, and of a listing for each entry.
REQUEST_CPU_SECONDS: Final = 0.002
LISTED_CPU_SECONDS: Final = 3e-5
