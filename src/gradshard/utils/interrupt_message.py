"""The answer to Ctrl-C. It imports nothing, because the command needs it before all else."""

INTERRUPTED = "interrupted; the same command may be given again"
