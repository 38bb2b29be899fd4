"""Shared by the tests that start whole runs: the command in a process of its own, and what it leaves behind."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "RAYRL_TEST_MARK"
"""Ray's processes inherit the environment of the process that starts them: this variable tells whose they are."""
COMMAND = str(Path(sys.executable).with_name("rayrl"))
SMALL = (
    "prompts_per_step=4",
    "rollout.max_new_tokens=8",
    "evaluation.num_prompts=4",
    "evaluation.samples_per_prompt=1",
    "logging.loggers=[]",
)
"""Overrides of the preset `tiny` that make a run short."""
ONE_RANK = (
    "rollout.backend=hf",
    "policy.ranks=1",
    "policy.zero_stage=0",
    "policy.train.mode=lora",
    "algorithm.estimator=reinforce_pp",
    "algorithm.minibatches=1",
    "rewards=[{name: length, kind: rule, rule: length_window, cpus_per_worker: 0.05}]",
)
"""The fewest processes that train: one policy rank, which is its own reference, one engine, one reward."""


def marked(mark: str) -> list[psutil.Process]:
    """Processes alive that were started under this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def described(processes: list[psutil.Process]) -> list[str]:
    """Their pids and command lines; those that have ended meanwhile are left out."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


@contextmanager
def leaves_nothing() -> Iterator[dict[str, str]]:
    """Environment for a run; afterwards every process that ran under it must be gone.

    Nearly all go in seconds; one that waits for Ray's control store, which was killed, gives up after a minute.
    """
    mark = uuid.uuid4().hex
    yield {MARK: mark}
    deadline = time.monotonic() + 90
    while alive := marked(mark):
        if time.monotonic() > deadline and (what := described(alive)):
            raise AssertionError(f"still there: {what}")
        time.sleep(0.1)


def rayrl(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command; nothing of it may stay."""
    with leaves_nothing() as marks:
        environment = {**os.environ, **marks, **(env or {})}
        return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=300)
