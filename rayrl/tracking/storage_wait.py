"""Waiting for storage that is full, gone or slow: what was to be written is tried again until it works or time is up.

Actors raise what their libraries make of a failed write: an OSError, or torch's and safetensors' own errors with the
system's words in them. A network file system whose server is gone fails nothing: its calls don't return.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rayrl.errors import RunError
from rayrl.heartbeat import beats

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
SLOWEST_CALL_S = 60.0
"""So long a call may take where failures aren't waited for."""
LOOKS = 4
LAST_WORDS_S = 5.0
GO_ON = "bring it back, and the same command goes on from the last checkpoint (recovery.storage_wait_s)"
_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ETIMEDOUT,
    errno.ENOTCONN, errno.ENOTEMPTY, errno.EHOSTDOWN,
    errno.EACCES, errno.EPERM, errno.EBUSY, errno.EAGAIN, errno.ENODEV,
}  # fmt: skip
_WORDS = re.compile(
    r"no space left|quota exceeded|input/output error|stale file handle|read-only file system|no such file|"
    r"not a directory|parent directory .* does not exist|file write failed|unexpected pos|"
    r"enforce fail at inline_container"
)


def is_storage_trouble(error: BaseException) -> bool:
    """Whether this is a file system that fails, and not a fault of what was written."""
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return not isinstance(error, RunError) and bool(_WORDS.search(str(error).lower()))


class Storage:
    """The file system that a run's folder is in, and for how long it is waited for."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    def patiently(self, action: Callable[[], T], what: str, on_wait: Callable[[float], None]) -> T:
        """`action`'s value. Where the storage fails it is tried again, for `wait_s` seconds in all.

        The time runs from the first failure. `on_wait` gets the seconds waited, once it has worked after all. Raises
        RunError where it never does.
        """
        began, pause = float("inf"), FIRST_WAIT_S
        while True:
            try:
                value = action()
            except Exception as error:
                began = min(began, time.monotonic())
                waited = time.monotonic() - began
                if not is_storage_trouble(error):
                    raise
                first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                if waited + pause > self._wait_s:
                    raise RunError(
                        f"{what}: the storage failed for {waited:.0f} s ({first_line}); the run stops here: make room "
                        f"or {GO_ON}"
                    ) from error
                logger.warning("%s: the storage fails (%s); trying again in %.0f s", what, first_line, pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_WAIT_S)
            else:
                if pause > FIRST_WAIT_S:
                    on_wait(time.monotonic() - began)
                return value

    @contextmanager
    def answering(self, what: str) -> Iterator[None]:
        """Around calls that may never return. After `wait_s` without a beat (heartbeat.py) they end this process.

        Nothing less does: no exception reaches a thread inside such a call, and each file that is closed on the way out
        may be the next. Ray ends the actors and bundles of a process that is gone. Several looks must find nothing new,
        or a driver that was stopped and continued (Ctrl-Z) would be ended by its first.
        """
        limit_s, done = max(self._wait_s, SLOWEST_CALL_S), threading.Event()

        def watch() -> None:
            seen, in_vain = beats(), 0
            while in_vain < LOOKS and not done.wait(min(limit_s / LOOKS, threading.TIMEOUT_MAX)):
                in_vain = in_vain + 1 if beats() == seen else 0
                seen = beats()
            if not done.is_set():
                _end(f"rayrl: {what}: the storage gave no answer for {limit_s:.0f} s; the run stops here: {GO_ON}")

        threading.Thread(target=watch, name="storage", daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _end(last_words: str) -> None:
    """Ends this process; stderr may be closed, or a file of the storage that doesn't answer."""
    saying = threading.Thread(target=print, args=(last_words,), kwargs={"file": sys.stderr, "flush": True}, daemon=True)
    saying.start()
    saying.join(LAST_WORDS_S)
    os._exit(1)
