"""The end of an actor that is stuck, with a look at where it was.

An actor offers its stack at its start: on SIGUSR2 Python's faulthandler writes the frames of all threads into a file in
memory, from the signal handler itself, so that it works while the interpreter waits inside a collective or a system
call, and after a stop (SIGSTOP) once it is continued. Asking, reading and killing are done by a task on the actor's own
node, since the actor doesn't answer. Linux only; elsewhere there is no stack, and Ray alone does the killing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray import exceptions as rex
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

STACK_WAIT_S = 3.0
"""For the stack to come; a process in uninterruptible sleep never writes it."""
EXIT_WAIT_S = 5.0
"""For a killed process to be gone, and its memory free for the one that takes its place."""
NO_STACK = -1


@dataclass(frozen=True)
class Process:
    """Where an actor runs, and the file descriptor, in its process, under which its stack can be read (or NO_STACK)."""

    node_id: str
    pid: int
    stack_fd: int


def offer_stack() -> int:
    """Makes this process write its stack on SIGUSR2; the file's descriptor, or NO_STACK where that isn't possible."""
    if not hasattr(os, "memfd_create"):
        return NO_STACK
    descriptor = os.memfd_create("rayrl-stack")
    faulthandler.register(signal.SIGUSR2, file=descriptor, all_threads=True)
    return descriptor


def end_stuck(process: Process, timeout_s: float) -> str | None:
    """Kills the process and waits for its end; its stack, or None where it left none or its node doesn't answer."""
    on_its_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    answer = _end_here.options(scheduling_strategy=on_its_node).remote(process.pid, process.stack_fd)
    try:
        return ray.get(answer, timeout=timeout_s) or None
    except rex.RayError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        logger.warning("process %d, which hangs, couldn't be ended on its node: %s", process.pid, reason)
        ray.cancel(answer, force=True)
        return None


@ray.remote(num_cpus=0, max_retries=3)  # an idle worker may end as it is given the task
def _end_here(pid: int, stack_fd: int) -> str:
    if not _is_rays(pid):
        return ""
    stack = _stack(pid, stack_fd) if stack_fd != NO_STACK else ""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.kill()
        try:
            process.wait(EXIT_WAIT_S)
        except psutil.TimeoutExpired:  # in uninterruptible sleep: it keeps its memory until its call returns
            logger.warning("process %d was killed and isn't gone after %.0f s", pid, EXIT_WAIT_S)
    return stack


def _is_rays(pid: int) -> bool:
    """A pid may be another's by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _stack(pid: int, stack_fd: int) -> str:
    path, text, same = Path(f"/proc/{pid}/fd/{stack_fd}"), "", 0
    deadline = time.monotonic() + STACK_WAIT_S
    try:
        os.kill(pid, signal.SIGUSR2)
        os.kill(pid, signal.SIGCONT)  # one that was stopped handles the signal as soon as it goes on
        while same < 4 and time.monotonic() < deadline:  # a busy machine may stop it in the middle of a line
            before, text = text, path.read_text(encoding="utf-8", errors="replace")
            same = same + 1 if text and text == before else 0
            time.sleep(0.1)
    except OSError:
        pass  # it ended meanwhile
    return text
