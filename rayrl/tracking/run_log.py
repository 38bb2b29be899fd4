"""The record of a run: metrics.jsonl, samples.jsonl, experience.jsonl in its folder, and what else the config names.

The folder is the truth. Opened at step k the log drops every row of step k and later, so a run that was killed and
resumed from the checkpoint of step k has each row once. Loggers are copies of it (loggers.py).
Patient text is in samples.jsonl; it goes anywhere else only where `logging.text_to` says so.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console

from rayrl.config.ppo import LoggingConfig
from rayrl.tracking.loggers import Logger, TensorBoardLogger, open_loggers
from rayrl.tracking.ray_metrics import RayMetricsLogger
from rayrl.tracking.rows import append_rows, open_rows, read_rows, replace_rows, sample_row
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Sample

logger = logging.getLogger(__name__)

EXPERIENCE = "experience.jsonl"
FILES = ("metrics.jsonl", "samples.jsonl", EXPERIENCE)


class RunLog:
    """Appends a run's rows; each call returns when its rows are on the disk."""

    def __init__(
        self,
        folder: Path,
        loggers: LoggingConfig,
        *,
        resume_step: int = 0,
        settings: Mapping[str, Any] | None = None,
        console: Console | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Open the log of the run in `folder` to go on at `resume_step`: rows of that step and later are dropped.

        `settings` is the run's configuration for W&B and MLflow (secrets are masked); `console` is where texts are
        printed if `text_to` names it, the progress display's own where there is one. `storage` is what ends the
        process where files of the folder never answer; loggers that are away don't.
        Raises ModuleNotFoundError naming the extra to install where a logger's package is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._config, self._settings, self._console = folder, loggers, settings or {}, console
        self._ray = RayMetricsLogger(folder.name)
        self._answering: Callable[[str], AbstractContextManager[object]] = (
            storage.answering if storage is not None else contextlib.nullcontext
        )
        self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        self._last_step = self._experienced = self._sampled = resume_step - 1
        self._loggers: list[Logger] = []
        self._files: dict[str, TextIO] = {}
        for path in (self._folder / name for name in FILES):
            with self._answering(path.name):
                if path.exists() or path.name != EXPERIENCE:  # which only PPO has
                    replace_rows(path, [row for row in read_rows(path) if row["step"] < resume_step])
        self._loggers = open_loggers(
            self._folder, self._config, resume_step, self._settings, self._console, self._answering
        )

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._answering(name):
            if name not in self._files:
                self._files[name] = open_rows(self._folder / name, "a")
            try:
                append_rows(self._files[name], rows)
            except OSError:  # what was open may be another file by the time that the storage is back
                with contextlib.suppress(OSError):
                    self._files.pop(name).close()
                raise

    def _tell(self, loggers: Sequence[Logger], tell: Callable[[Logger], None]) -> None:
        """Copies to loggers. One that can't be written to is left out from then on: the folder has it all."""
        for one in loggers:
            try:
                with self._answering("tensorboard") if isinstance(one, TensorBoardLogger) else contextlib.nullcontext():
                    tell(one)
            except Exception as error:  # each client has its own for a server that is away
                logger.warning("%s can't be written to and gets no more: %s", type(one).__name__, error)
                self._loggers = [other for other in self._loggers if other is not one]

    def rewind(self, step: int) -> None:
        """Goes on at `step`, as if opened there: rows of that step and later are dropped."""
        self.close()
        self._open(step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step, once a step, in rising order.

        Keys are flat (`score/mixed`); a metric that wasn't measured is left out, not None or NaN.
        Raises ValueError for a number that isn't finite, and for a step that was logged before.
        """
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step}: a row of step {self._last_step} was logged before it")
        row = {key: _finite(key, value, step) for key, value in values.items()}
        self._append("metrics.jsonl", [{"step": step, **row}])
        self._last_step = step
        self._tell(self._loggers, lambda one: one.metrics(step, row))
        self._ray.metrics(step, row)

    def now(self, values: Mapping[str, float]) -> None:
        """What is true at this moment, for Ray's metrics alone (ray_metrics.py): it isn't on the disk."""
        self._ray.now(values)

    def samples(self, samples: Sequence[Sample]) -> None:
        """Log sample texts. Write those of a step before its metrics, so that a step with a metric row is whole."""
        self._append("samples.jsonl", [sample_row(sample) for sample in samples])
        self._tell(self._loggers, lambda one: one.samples(samples))

    def step(
        self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample], sample_ids: Sequence[str]
    ) -> None:
        """All rows of a step, the metrics last, so that a step with a row of metrics is whole.

        `sample_ids`: which samples it was trained on, unique in the run, in the trainers' order. Where the disk failed
        on the way (OSError) a second call writes what is missing.
        """
        if self._experienced < step:
            self._append(EXPERIENCE, [{"step": step, "samples": list(sample_ids)}])
            self._experienced = step
        if self._sampled < step:
            self.samples(samples)
            self._sampled = step
        self.metrics(step, metrics)

    def close(self) -> None:
        """Close the files and tell the loggers that the run is over."""
        while self._files:
            name, file = self._files.popitem()
            with self._answering(name), contextlib.suppress(OSError):  # its rows are on the disk, or were written anew
                file.close()
        self._tell(self._loggers, lambda one: one.close())
        self._loggers = []

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _finite(key: str, value: float, step: int) -> float:
    if key == "step":
        raise ValueError(f"metrics of step {step}: the key 'step' is the row's own; name the metric otherwise")
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"metrics of step {step}: {key!r} is {number}; the run must not go on with it")
    return number
