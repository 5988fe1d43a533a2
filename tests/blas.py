"""The threads of BLAS, of which tests have one, as the functions do."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def blas_threads(number: int) -> Iterator[None]:
    """Let numpy's products have so many threads, as on a client's machine."""
    threads = import_module("threadpoolctl")  # a package that scikit-learn needs
    with threads.threadpool_limits(number, user_api="blas"):
        found = {pool["num_threads"] for pool in threads.threadpool_info()}
        assert found == {number}, found
        yield
