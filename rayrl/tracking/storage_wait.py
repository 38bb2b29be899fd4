"""Waiting for storage that is full, gone or slow: what was to be written is tried again until it works or time is up.

Actors raise what their libraries make of a failed write: an OSError, or torch's and safetensors' own errors with the
system's words in them.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from rayrl.errors import RunError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
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


def patiently(action: Callable[[], T], wait_s: float, what: str, on_wait: Callable[[float], None] | None = None) -> T:
    """`action`'s value. Where the storage fails it is tried again, for `wait_s` seconds in all.

    `on_wait` gets the seconds waited, once it has worked after all. Raises RunError where it never does.
    """
    began, pause = time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            value = action()
        except Exception as error:
            waited = time.monotonic() - began
            if not is_storage_trouble(error):
                raise
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if waited + pause > wait_s:
                raise RunError(
                    f"{what}: the storage failed for {waited:.0f} s ({first_line}); the run stops here: make room or "
                    "bring it back, and the same command goes on from the last checkpoint (recovery.storage_wait_s)"
                ) from error
            logger.warning("%s: the storage fails (%s); trying again in %.0f s", what, first_line, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT_S)
        else:
            if on_wait is not None and pause > FIRST_WAIT_S:
                on_wait(time.monotonic() - began)
            return value
