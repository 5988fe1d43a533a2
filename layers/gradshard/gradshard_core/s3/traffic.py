"""Counts of requests to S3 and of the bytes that they carry."""

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass
class Traffic:
    """Requests and bytes since the counts were last taken."""

    gets: int = 0
    puts: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Meter:
    """Counts traffic; several threads may use one meter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Add to the counts, by the names of :class:`Traffic`'s fields."""
        with self._lock:
            self._counts.update(counts)

    def take(self) -> Traffic:
        """Return the counts so far and start again from zero."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return Traffic(**taken)
