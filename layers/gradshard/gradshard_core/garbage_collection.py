"""Python's search for cycles of objects, which costs much and finds nothing in parsed JSON."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Do without the search while the caller makes many objects, none of them in a cycle.

    The search looks at all objects again and again while their number grows: a third of the time
    that a header of 100,000 tensors takes. Threads may overlap: the one that ends first resumes it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
