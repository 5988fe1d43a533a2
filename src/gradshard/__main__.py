"""The entry point of the ``gradshard`` command.

Ctrl-C prints a traceback until :func:`main` has set its handler. So this module imports little
before that, and no typing.
"""

import gc
import os
import signal
from types import FrameType

from gradshard.utils.interrupt_message import INTERRUPTED

GC_THRESHOLD = 100_000
"""New objects before a garbage collection. Loading boto3 creates many and no garbage: with Python's
threshold, collections take about a tenth of a short command's time."""


def main() -> None:
    """Run the command. Ctrl-C is answered in one line at any moment, also while it loads."""
    gc.set_threshold(GC_THRESHOLD)
    interrupting = signal.getsignal(signal.SIGINT)
    if interrupting is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    # While it loads, KeyboardInterrupt could be raised in the middle of any library.
    from gradshard.utils.light_imports import hide_unused_libraries

    hide_unused_libraries()
    from gradshard.cli import main as command

    signal.signal(signal.SIGINT, interrupting)
    try:
        command(prog_name="gradshard")
    finally:
        # The command is done: an interrupt would only disturb the shutdown of the interpreter.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, f"gradshard: {INTERRUPTED}\n".encode())
    os._exit(1)


if __name__ == "__main__":
    main()
