"""Where the ``gradshard`` command begins."""

import os
import signal
from types import FrameType

from gradshard.utils.text import INTERRUPTED


def main() -> None:
    """Run the command; whoever interrupts it is answered in one line, at whatever moment."""
    interrupting = signal.getsignal(signal.SIGINT)
    if interrupting is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    # It takes most of a second to load, in which an exception could come out of any library.
    from gradshard.cli import main as command

    signal.signal(signal.SIGINT, interrupting)
    try:
        command(prog_name="gradshard")
    finally:
        # All has been done and said; what ends now ends by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, f"gradshard: {INTERRUPTED}\n".encode())
    os._exit(1)


if __name__ == "__main__":
    main()
