"""Storage that never answers, which a FIFO that nobody reads stands for: opening it doesn't return."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rayrl.errors import RunError
from rayrl.tracking.rows import evaluation_path
from rayrl.tracking.storage_wait import Storage

LIMIT = "from rayrl.tracking import storage_wait; storage_wait.SLOWEST_CALL_S = 1.0; "


def python(code: str, *args: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process of its own, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LIMIT + code, *map(str, args)], capture_output=True, text=True, timeout=60
    )
    return done, time.monotonic() - began


def test_a_call_that_never_returns_ends_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gone")
    code = """
import sys
try:
    with storage_wait.Storage(2.0).answering("log of step 3"):
        open(sys.argv[1], "w")
finally:
    print("closing the next file")
"""
    done, seconds = python(code, tmp_path / "gone")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "rayrl: log of step 3: the storage gave no answer for 2 s; the run stops here: bring it back, and the same "
        "command goes on from the last checkpoint (recovery.storage_wait_s)\n"
    )
    assert 2 <= seconds < 10


def test_a_long_call_that_gets_further_isnt_ended() -> None:
    code = """
import time
from rayrl.heartbeat import beat
with storage_wait.Storage(2.0).answering("going back"):
    for _ in range(10):
        time.sleep(0.4)
        beat()
time.sleep(2.5)  # nobody watches any more
print("done")
"""
    done, seconds = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert seconds > 6.5


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_the_process_ends_though_nobody_reads_its_last_words(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gone")
    code = f"""
import sys
storage_wait.LAST_WORDS_S = 0.5
sys.stderr.write("x" * 4096 * {0 if reader == "gone" else 1})
with storage_wait.Storage(0.0).answering("log of step 3"):
    open(sys.argv[1], "w")
"""
    read, write = os.pipe()
    if reader == "asleep":
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)  # one page, which is full by then
    command = [sys.executable, "-c", LIMIT + code, str(tmp_path / "gone")]
    with subprocess.Popen(command, stderr=write) as process:
        os.close(write)
        if reader == "gone":
            os.close(read)
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
            if reader == "asleep":
                os.close(read)


def test_a_driver_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Its time went by while it couldn't even look."""
    code = """
import sys, time
with storage_wait.Storage(4.0).answering("a file"):
    print("in it", flush=True)
    for _ in range(10):
        time.sleep(0.1)
print("done")
"""
    with subprocess.Popen([sys.executable, "-c", LIMIT + code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "in it\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.5)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0


def test_loggers_that_are_slow_end_nothing(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from rayrl.config.ppo import LoggingConfig
from rayrl.tracking import run_log

class Slow:
    def metrics(self, step, values): time.sleep(6.0)
    def samples(self, samples): pass
    def close(self): time.sleep(6.0)

run_log.open_loggers = lambda *_: [Slow()]
with run_log.RunLog(Path(sys.argv[1]), LoggingConfig(), storage=storage_wait.Storage(4.0)) as log:
    log.metrics(0, {"a": 1.0})
    log.rewind(0)
print("done")
"""
    done, seconds = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert seconds > 18


@pytest.mark.parametrize("what", ["samples.jsonl", "tensorboard"])
def test_files_of_a_log_that_never_answer_end_the_run(what: str, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from rayrl.config.ppo import LoggingConfig
from rayrl.tracking.run_log import RunLog

exists = Path.exists
Path.exists = lambda path: time.sleep(60) if path.name == "{what}" else exists(path)
RunLog(Path(sys.argv[1]), LoggingConfig(loggers=["tensorboard"]), storage=storage_wait.Storage(5.0))
"""
    done, _ = python(code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"rayrl: {what}: the storage gave no answer for 5 s; the run stops here: ")


def test_an_error_passes_and_ends_the_watch() -> None:
    code = """
import time
try:
    with storage_wait.Storage(0.0).answering("a file"):
        raise OSError(28, "No space left on device")
except OSError:
    time.sleep(1.5)
    print("waited for elsewhere")
"""
    done, _ = python(code)
    assert (done.returncode, done.stdout) == (0, "waited for elsewhere\n")


def test_what_isnt_the_storages_fault_isnt_tried_again() -> None:
    tries = []

    def action() -> None:
        tries.append(1)
        raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"):
        Storage(60.0).patiently(action, "log of step 0", lambda seconds: None)
    assert len(tries) == 1


def test_the_time_runs_from_the_first_failure() -> None:
    tries: list[float] = []

    def long_work_that_fails_once() -> str:
        time.sleep(2.5)
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        return "written"

    waited: list[float] = []
    assert Storage(2.0).patiently(long_work_that_fails_once, "evaluation", waited.append) == "written"
    assert waited == [pytest.approx(tries[1] - tries[0], abs=0.2)]


def test_one_that_stays_gone_is_an_error_in_time() -> None:
    def action() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(RunError, match=r"log of step 0: the storage failed for [1-9] s \(.*No such file"):
        Storage(2.0).patiently(action, "log of step 0", lambda seconds: pytest.fail("it never worked"))


def test_a_run_whose_storage_stops_answering_ends_and_leaves_no_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = f"""
import sys
from rayrl.cli import main
sys.exit(main(["ppo", "tiny", "output_dir={run}", "steps=1", "evaluation.num_prompts=2", "recovery.storage_wait_s=0"]))
"""
    limit = LIMIT.replace("= 1.0", "= 5.0")  # a busy disk isn't one that is gone
    driver = subprocess.Popen([sys.executable, "-c", limit + code], stderr=subprocess.PIPE, text=True)
    while not (run / "config.yaml").exists():  # the actors are up
        assert driver.poll() is None
        time.sleep(0.05)
    written = evaluation_path(run, 1)
    written.parent.mkdir(exist_ok=True)
    os.mkfifo(written.with_name(written.name + ".new"))
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 1
    assert "rayrl: evaluation after step 1: the storage gave no answer for 5 s; the run stops here" in errors
    actors = json.loads((run / "run.json").read_text())["actors"]
    assert len(actors) >= 5
    left = []
    for actor in actors.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(actor["pid"]))
    assert not psutil.wait_procs(left, timeout=120)[1]
