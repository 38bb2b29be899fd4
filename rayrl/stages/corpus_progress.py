"""A line every few seconds on how far a phase is."""

from __future__ import annotations

import logging
import time

from rayrl.tracking.progress import duration

logger = logging.getLogger(__name__)

SAY_EVERY_S = 5.0


class Progress:
    """Tasks done, speed and what is left; nothing of a phase that is over at once."""

    def __init__(self, name: str, tasks: int, done_before: int) -> None:
        self._name, self._tasks, self._before = name, tasks, done_before
        self._done = self._bytes = 0
        self._began = self._said = time.monotonic()

    def __call__(self, num_bytes: int) -> None:
        """Another task is done, which read so much text."""
        self._done += 1
        self._bytes += num_bytes
        now = time.monotonic()
        left = self._tasks - self._before - self._done
        if now - (self._said if left else self._began) < SAY_EVERY_S:
            return
        self._said = now
        rate = f", {self._bytes / (now - self._began) / 1e6:.1f} MB/s" if self._bytes else ""
        rest = f", {duration((now - self._began) / self._done * left)} left" if left else ""
        logger.info("  %s: task %d of %d%s%s", self._name, self._before + self._done, self._tasks, rate, rest)
