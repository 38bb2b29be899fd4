"""One run a folder: a file lock that a killed process lets go of."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from rayrl.errors import UserError

LOCK = ".lock"
"""Held while a run uses the folder; the file stays."""


@contextlib.contextmanager
def only_run(folder: Path, setting: str = "output_dir") -> Iterator[None]:
    """Makes the folder and keeps other runs out of it. Raises UserError where one is in.

    `setting`: the configuration's name of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{setting} {folder} is in use by another run: wait for its end, or set another {setting}"
            ) from None
        yield
