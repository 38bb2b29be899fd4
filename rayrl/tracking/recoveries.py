"""recoveries.jsonl: what a run lost and how it went on. Rows are never taken back, also where steps are done again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rayrl.tracking.rows import append_rows, open_rows, read_rows
from rayrl.tracking.storage_wait import Storage

logger = logging.getLogger(__name__)

Cause = Literal["died", "hung", "joined", "resumed", "storage", "damaged", "connection"]
FILE = "recoveries.jsonl"
STACKS = "stacks"


@dataclass(frozen=True)
class Recovery:
    """One event. `died` and `hung` name the actors; `resumed` is a new driver, `joined` a new engine."""

    cause: Cause
    step: int
    """In which it happened, from 0."""
    phase: str
    lost: Sequence[str]
    """Actors, or checkpoints."""
    action: str
    """What was done, in words."""
    seconds: float
    """From noticing it to going on."""
    back_to: int | None = None
    """Steps that were applied when it went on, where steps had to be done again."""
    stacks: Sequence[str] = ()
    """Files with the stacks of the hung, in the run's folder."""
    time: float = field(default_factory=time.time)
    """When it was noticed, in seconds since the epoch."""


class RecoveryLog:
    """Writes them down, and counts for the metrics of a step."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self._folder, self._storage = folder, storage
        self.seconds = 0.0
        """Of all that this process has added."""
        self._new: list[Recovery] = []
        self._unwritten: list[Recovery] = []

    def add(self, recovery: Recovery) -> None:
        """On the disk when it returns, unless that fails just now."""
        self.seconds += recovery.seconds
        self._new.append(recovery)
        self._unwritten.append(recovery)
        try:
            with self._storage.answering(FILE), open_rows(self._folder / FILE, "a") as file:
                append_rows(file, [asdict(one) for one in self._unwritten])
        except OSError as error:  # the storage is what is waited for: the rows go with the next
            logger.warning("%s can't be written now: %s", FILE, error)
        else:
            self._unwritten = []

    def write_stack(self, name: str, text: str) -> str | None:
        """Keeps the stack of a hung actor; its path in the run's folder, None where that can't be written."""
        folder = self._folder / STACKS
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name.replace(':', '-').replace('[', '-').rstrip(']')}.txt"
        try:
            with self._storage.answering(f"the stack of {name}"):
                folder.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("the stack of %s can't be written: %s", name, error)
            return None
        return str(path.relative_to(self._folder))

    def take_metrics(self) -> dict[str, float]:
        """Events, those of each cause that there was, and lost seconds since the last call."""
        new, self._new = self._new, []
        causes = Counter(event.cause for event in new)
        by_cause = {f"recovery/{cause}": float(count) for cause, count in causes.items()}
        total = {"recovery/events": float(len(new)), "recovery/seconds": sum(event.seconds for event in new)}
        return total | by_cause


def read_recoveries(folder: Path) -> list[Recovery]:
    """Of a run, in the order in which they happened."""
    return [Recovery(**row) for row in read_rows(folder / FILE)]
