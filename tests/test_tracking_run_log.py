"""The run's folder: rows once each over a kill, and patient text only where it was asked for."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rayrl.config.ppo import LoggingConfig
from rayrl.tracking.rows import is_timing, read_rows, read_samples, replace_rows, write_samples
from rayrl.tracking.run_log import RunLog
from rayrl.tracking.secrets import MASK, masked
from rayrl.types import Sample

QUIET = LoggingConfig(loggers=[])
PATIENT = "my left ankle swelled after football 脚踝肿了"


def sample(step: int, prompt_id: str = "en-1", mixed: float = 0.5) -> Sample:
    messages = [{"role": "user", "content": PATIENT}]
    return Sample(
        step, "train", prompt_id, messages, f"answer to: {PATIENT}", None, {"q": 1.0, "r": None}, {"q": 0.5}, mixed, 7
    )  # type: ignore[arg-type]


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_rows(path)]


def test_a_row_a_step_with_flat_keys(tmp_path: Path) -> None:
    with RunLog(tmp_path, QUIET) as log:
        log.samples([sample(0)])
        log.metrics(0, {"score/mixed": 0.25, "weights/version": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "score/mixed": 0.25, "weights/version": 1}\n'
    assert read_samples(tmp_path / "samples.jsonl") == [sample(0)]


def test_rows_are_readable_before_the_log_is_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, QUIET)
    log.metrics(0, {"a/b": 1.0})
    assert steps(tmp_path / "metrics.jsonl") == [0]
    log.close()


def test_resume_cuts_what_came_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, QUIET) as log:
        for step in range(5):
            log.samples([sample(step, "a"), sample(step, "b")])
            log.metrics(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x": 0.1')
    with RunLog(tmp_path, QUIET, resume_step=3) as log:
        log.metrics(3, {"x": 30})
    assert [(row["step"], row["x"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 30),
    ]
    assert steps(tmp_path / "samples.jsonl") == [0, 0, 1, 1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_a_fresh_run_in_a_used_folder_begins_empty(tmp_path: Path) -> None:
    with RunLog(tmp_path, QUIET) as log:
        log.metrics(0, {"x": 1.0})
    RunLog(tmp_path, QUIET).close()
    assert steps(tmp_path / "metrics.jsonl") == []


def test_killed_and_resumed_no_row_is_twice_or_missing(tmp_path: Path) -> None:
    body = (
        "import itertools, sys; from pathlib import Path; from rayrl.config.ppo import LoggingConfig;"
        "from rayrl.tracking.run_log import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), LoggingConfig(loggers=[]))\n"
        "for step in itertools.count(): log.metrics(step, {f'x/{i}': step for i in range(400)})"
    )
    process = subprocess.Popen([sys.executable, "-c", body, str(tmp_path)])
    path = tmp_path / "metrics.jsonl"
    while not path.exists() or path.stat().st_size < 40_000:
        assert process.poll() is None, "the writer ended by itself"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = len(read_rows(path))
    assert written >= 9
    with RunLog(tmp_path, QUIET, resume_step=written - 3) as log:
        for step in range(written - 3, written + 3):
            log.metrics(step, {"x": step})
    assert steps(path) == list(range(written + 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with RunLog(tmp_path, QUIET) as log, pytest.raises(ValueError, match=r"metrics of step 4: 'loss/policy' is"):
        log.metrics(4, {"score/mixed": 1.0, "loss/policy": value})
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_sample_with_a_score_that_is_not_finite_names_its_prompt(tmp_path: Path) -> None:
    with (
        RunLog(tmp_path, QUIET) as log,
        pytest.raises(ValueError, match=r"prompt 'en-9', step 2: a score isn't finite"),
    ):
        log.samples([sample(2, "en-9", float("nan"))])


def test_a_step_twice_is_refused(tmp_path: Path) -> None:
    with RunLog(tmp_path, QUIET, resume_step=2) as log:
        log.metrics(2, {"x": 1.0})
        with pytest.raises(ValueError, match="a row of step 2 was logged before it"):
            log.metrics(2, {"x": 1.0})
        with pytest.raises(ValueError, match="the key 'step' is the row's own"):
            log.metrics(3, {"step": 3})


def test_a_bad_line_before_the_last_is_an_error_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not JSON"):
        RunLog(tmp_path, QUIET, resume_step=3)


def test_evaluation_samples_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "step-000000.jsonl"
    write_samples(path, [sample(0), sample(0, "zh-1")])
    assert read_samples(path) == [sample(0), sample(0, "zh-1")]
    assert PATIENT in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_text_that_utf8_cannot_hold_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    replace_rows(path, [{"text": "half a pair \ud800 问"}])
    assert read_rows(path) == [{"text": "half a pair \ud800 问"}]


def test_timing_keys_are_told_from_learning() -> None:
    keys = ["time/step", "busy/policy", "score/mixed", "length/mean", "eval/time/x"]
    assert [is_timing(key) for key in keys] == [True, True, False, False, False]


def files_with(folder: Path, text: str) -> set[str]:
    """Top-level entries of a folder under which a file's bytes hold the text."""
    found = [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return {path.relative_to(folder).parts[0] for path in found}


@pytest.mark.parametrize("asked", [False, True])
def test_patient_text_reaches_tensorboard_and_console_only_on_request(
    tmp_path: Path, asked: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    config = LoggingConfig(loggers=["tensorboard"], text_to=["tensorboard", "console"] if asked else [])
    with RunLog(tmp_path, config, settings={"seed": 1}, console=Console(width=200)) as log:
        log.samples([sample(0)])
        log.metrics(0, {"score/mixed": 0.5})
    printed = "".join(capfd.readouterr())
    assert files_with(tmp_path, "left ankle swelled") == (
        {"samples.jsonl", "tensorboard"} if asked else {"samples.jsonl"}
    )
    assert ("left ankle swelled" in printed) == asked
    assert files_with(tmp_path, "score/mixed") == {"metrics.jsonl", "tensorboard"}


def test_console_text_is_not_read_as_markup(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    with RunLog(tmp_path, LoggingConfig(loggers=[], text_to=["console"]), console=Console(width=200)) as log:
        log.samples([dataclasses.replace(sample(0), response="[bold]take[/bold] [/nothing]")])
    assert "[bold]take[/bold] [/nothing]" in capfd.readouterr().out


def test_a_resumed_run_tells_tensorboard_what_to_purge(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    config = LoggingConfig(loggers=["tensorboard"])
    with RunLog(tmp_path, config) as log:
        for step in range(4):
            log.metrics(step, {"x": 1.0})
    first = set((tmp_path / "tensorboard").iterdir())
    with RunLog(tmp_path, config, resume_step=2) as log:
        log.metrics(2, {"x": 2.0})
    (second,) = set((tmp_path / "tensorboard").iterdir()) - first
    data, events = second.read_bytes(), []
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [2]
    assert [(e.step, e.summary.value[0].simple_value) for e in events if e.HasField("summary")] == [(2, 2.0)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_logger_names_its_extra(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (name, f"{name}.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'rayrl\[{name}\]'"):
        RunLog(tmp_path, LoggingConfig.model_validate({"loggers": [name]}))


def test_text_to_a_logger_that_is_off_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"text_to: \['wandb'\] isn't among logging.loggers \['tensorboard'\]"):
        LoggingConfig(text_to=["wandb"])


@pytest.mark.parametrize("asked", [False, True])
def test_wandb_offline(tmp_path: Path, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = LoggingConfig(loggers=["wandb"], text_to=["wandb"] if asked else [])
    for resume_step in (0, 1):
        with RunLog(tmp_path, config, resume_step=resume_step, settings={"judge": {"api_key": "sk-9"}}) as log:
            log.samples([sample(resume_step)])
            log.metrics(resume_step, {"score/mixed": 0.5})
    assert ("wandb" in files_with(tmp_path, "left ankle swelled")) == asked
    assert "wandb" in files_with(tmp_path, "score/mixed")
    assert files_with(tmp_path, "sk-9") == set()


@pytest.mark.parametrize("asked", [False, True])
def test_mlflow_keeps_one_point_a_step_over_a_resume(
    tmp_path: Path, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    config = LoggingConfig(loggers=["mlflow"], text_to=["mlflow"] if asked else [], project="consultations 问诊")
    for first in (0, 2):
        with RunLog(run, config, resume_step=first, settings={"hub_token": "hf-9"}) as log:
            for step in range(first, first + 3):
                log.samples([sample(step)])
                log.metrics(step, {"score/mixed": step / 10, "score/问题": 1.0})
    run_id = (run / "mlflow_run_id").read_text().strip()
    history = MlflowClient().get_metric_history(run_id, "score/mixed")
    assert [(point.step, point.value) for point in history] == [(step, step / 10) for step in range(5)]
    assert (files_with(tmp_path, "left ankle swelled") - {"run"} != set()) == asked
    assert files_with(tmp_path, "hf-9") == set()


def test_secrets_are_masked_at_any_depth() -> None:
    config = {
        "judge": {"api_key": "sk-1", "apiToken": "t", "url": "https://me:pw@host/v1", "model": "m"},
        "sources": [{"password": "p", "client_secret": ["a"], "key": None}],
        "max_new_tokens": 64,
    }
    assert masked(config) == {
        "judge": {"api_key": MASK, "apiToken": MASK, "url": f"https://{MASK}@host/v1", "model": "m"},
        "sources": [{"password": MASK, "client_secret": MASK, "key": None}],
        "max_new_tokens": 64,
    }
    assert config["judge"]["api_key"] == "sk-1"  # type: ignore[index]


def test_replace_leaves_the_old_file_where_a_row_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    replace_rows(path, [{"step": 0}])
    with pytest.raises(ValueError, match="Out of range float"):
        replace_rows(path, [{"step": 1}, {"x": float("nan")}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 0}]


class Broken:
    """A logger whose disk is full."""

    def __init__(self) -> None:
        self.asked = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.asked += 1
        raise OSError(28, "No space left on device")

    def samples(self, samples: Sequence[Sample]) -> None:
        return

    def close(self) -> None:
        return


def test_a_logger_that_cannot_be_written_to_does_not_stop_the_run(tmp_path: Path) -> None:
    with RunLog(tmp_path, QUIET) as log:
        broken = Broken()
        log._loggers.append(broken)
        for step in range(3):
            log.step(step, {"x": step}, [sample(step, "a")], [f"0/p{step}#0"])
    assert broken.asked == 1
    assert steps(tmp_path / "metrics.jsonl") == steps(tmp_path / "samples.jsonl") == [0, 1, 2]
    assert [row["samples"] for row in read_rows(tmp_path / "experience.jsonl")] == [["0/p0#0"], ["0/p1#0"], ["0/p2#0"]]
