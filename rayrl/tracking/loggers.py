"""TensorBoard, Weights & Biases, MLflow and the console as copies of a run's log.

Each class imports its package when it is opened. What a resumed run logs again is shown once: TensorBoard purges,
W&B keeps the first row of a step, and MLflow, which would keep both, isn't sent steps that it has.
Uploads, accounts and servers are set up as those packages document it (their environment variables).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from rayrl.config.ppo import LoggingConfig
from rayrl.tracking.secrets import masked
from rayrl.types import Sample


class Logger(Protocol):
    """Where metrics and samples are copied to."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Copy a step's metrics."""

    def samples(self, samples: Sequence[Sample]) -> None:
        """Copy sample texts, where this logger may have them."""

    def close(self) -> None:
        """The run is over."""


def open_loggers(
    folder: Path,
    config: LoggingConfig,
    resume_step: int,
    settings: Mapping[str, Any],
    console: Console | None,
    answering: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> list[Logger]:
    """The loggers that the config names. Raises ModuleNotFoundError naming the extra where a package is missing.

    `answering` stands around what is done in `folder` alone (storage_wait.py).
    """
    settings = masked(settings)
    texts = set(config.text_to)
    opened: list[Logger] = [ConsoleTexts(console or Console())] if "console" in texts else []

    def tensorboard(text: bool) -> Logger:
        with answering("tensorboard"):
            return TensorBoardLogger(folder, text, resume_step)

    makers: dict[str, Callable[[bool], Logger]] = {
        "tensorboard": tensorboard,
        "wandb": lambda text: WandbLogger(folder, text, config.project, settings),
        "mlflow": lambda text: MlflowLogger(folder, text, config.project, settings),
    }
    return opened + [makers[name](name in texts) for name in dict.fromkeys(config.loggers)]


class ConsoleTexts:
    """Prints sample texts; metrics are the progress display's."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: progress.py shows them."""

    def samples(self, samples: Sequence[Sample]) -> None:
        """Print each text, in its own words (no markup is read from it)."""
        for sample in samples:
            self._console.print(Text(as_text(sample)), end="\n\n")

    def close(self) -> None:
        """Nothing is held."""


class TensorBoardLogger:
    """Event files in the run's folder, in tensorboardX's format.

    Written here and not by its SummaryWriter, whose thread ends at a write that fails: those that fill its queue would
    wait for ever.
    """

    def __init__(self, folder: Path, with_text: bool, resume_step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event, self._with_text = summary, Event, with_text
        place = folder / "tensorboard"
        resumed = place.exists()
        place.mkdir(parents=True, exist_ok=True)
        suffix = f".from-{resume_step}"  # a file's name is else the second it was made in
        self._writer = EventsWriter(str(place / "events"), suffix)
        if resumed:  # without it what came after the checkpoint would be drawn beside what the resumed run writes
            self._add(resume_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **what))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a key."""
        for key, value in values.items():
            self._add(step, summary=self._summary.scalar(key, value))
        self._writer.flush()

    def samples(self, samples: Sequence[Sample]) -> None:
        """One text a sample, under its split."""
        if self._with_text:
            for sample in samples:
                tag = f"samples/{sample.split}/{sample.prompt_id}"
                self._add(sample.step, summary=self._summary.text(tag, _as_code(as_text(sample))))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbLogger:
    """A Weights & Biases run that a resumed run continues under the same id."""

    def __init__(self, folder: Path, with_text: bool, project: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise _missing("wandb", error) from error
        self._wandb = wandb
        self._with_text = with_text
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=_remembered(folder / "wandb_run_id", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True),  # printed text stays on this machine
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One history row a step."""
        self._run.log(dict(values), step=step)

    def samples(self, samples: Sequence[Sample]) -> None:
        """One table of texts a step."""
        if self._with_text and samples:
            columns = ["step", "split", "prompt_id", "mixed", "text"]
            rows = [[s.step, s.split, s.prompt_id, s.mixed, as_text(s)] for s in samples]
            self._run.log({"samples": self._wandb.Table(columns=columns, data=rows)}, step=samples[0].step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlflowLogger:
    """An MLflow run that a resumed run continues under the same id."""

    def __init__(self, folder: Path, with_text: bool, project: str, settings: Mapping[str, Any]) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise _missing("mlflow", error) from error
        self._client = MlflowClient()
        self._with_text = with_text
        self._run_id = _remembered(folder / "mlflow_run_id", lambda: self._create(project, folder.name, settings))
        self._client.update_run(self._run_id, status="RUNNING")
        self._last_step = int(self._client.get_run(self._run_id).data.metrics.get("step", -1))

    def _create(self, project: str, name: str, settings: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        self._client.log_dict(run_id, dict(settings), "config.yaml")
        return run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One batch a step; `step` itself is logged too and says on resume which steps are there."""
        if step > self._last_step:
            for key, value in {**values, "step": step}.items():
                self._client.log_metric(self._run_id, key, value, step=step)

    def samples(self, samples: Sequence[Sample]) -> None:
        """One text artifact a step."""
        if self._with_text and samples:
            text = "\n\n".join(as_text(sample) for sample in samples)
            self._client.log_text(self._run_id, text, f"samples/step-{samples[0].step:06d}.txt")

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)


def as_text(sample: Sample) -> str:
    """A sample as plain text: its scores, the conversation turn by turn, the answer."""
    scores = ", ".join(f"{name} {'left out' if raw is None else f'{raw:.3f}'}" for name, raw in sample.raw.items())
    turns = [f"{message['role']}: {message['content']}" for message in sample.messages]
    head = f"[step {sample.step}, {sample.split}, {sample.prompt_id}] mixed {sample.mixed:.3f} ({scores})"
    return "\n".join([head, *turns, f"answer: {sample.response}"])


def _as_code(text: str) -> str:
    """TensorBoard reads texts as Markdown; an indented block shows them as they are."""
    return "\n".join("    " + line for line in text.splitlines())


def _remembered(path: Path, make: Callable[[], str]) -> str:
    """What a file says, or what `make` returns, written to it."""
    if not path.exists():
        path.write_text(make() + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _missing(name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"logging.loggers names {name!r}, but its package can't be imported ({error}): pip install 'rayrl[{name}]', "
        f"or take it out of logging.loggers"
    )
