"""Jobs on a Ray cluster through its dashboard: send one, follow what it prints, ask for it, stop it.

Ray takes each submission id once. Here a job has a name, under which it may be submitted again once it has ended: its
ids are NAME, NAME-2, NAME-3 ..., and its metadata hold the name. Left out: what a job runs (rayrl/commands), what it
takes along (upload.py), starting clusters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_actors, list_placement_groups

from cluster.errors import CannotConnect, ClusterError, JobRefused
from cluster.sealed import seal

for _name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they tell of every upload and socket
logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray lets the first that is set win over everything; here an address that is given wins."""
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 300.0
QUIET_S = 20.0
"""A log that says nothing for so long: is the job, and the dashboard, still there?"""
RECONNECTS = 5
STOP_WAIT_S = 30
"""Between SIGTERM and SIGKILL; Ray's own choice, 3 s, is short for a run that still writes."""
LEFT_TIMEOUT_S = 60.0
"""Within which actors and placement groups of a job that has ended are gone."""
NAME_KEY = "rayrl_name"


@dataclass(frozen=True)
class Job:
    """What to run. Example: Job("first", "python -m rayrl.cli ppo run.yaml", "/tmp/upload.zip")"""

    name: str
    entrypoint: str
    working_dir: str
    """A folder, or an archive of it."""
    pip: str | None = None
    """Path of a requirements file: what is installed on top, on every node, before the job starts."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the job's driver and its workers, for Ray's job table and logs to show."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """The same for what nobody is to read (sealed.py)."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A job that the cluster knows."""

    id: str
    name: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    entrypoint: str
    metadata: Mapping[str, str]
    message: str
    started_s: float | None
    """Since the epoch."""
    ended_s: float | None
    exit_code: int | None
    driver: str | None
    """Ray's own id of the process that runs it, under which its actors are listed."""

    @property
    def ended(self) -> bool:
        """Whether it is over, in whatever way."""
        return JobStatus(self.status).is_terminal()


class _Client(JobSubmissionClient):
    """Ray's, with limits on every request: it has none."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S), **options)


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str | None = None) -> None:
        """`address`: of the dashboard, http://HOST:8265; by default what Ray's variables say, or this machine's.

        Raises CannotConnect where nothing answers there, or where it wants another token.
        """
        self.address = dashboard(address, os.environ)
        with self._errors(), _only_address(self.address):
            try:
                self._client = _Client(self.address)
            except AuthenticationError:
                # As ray.init does: a token that is there is used, without RAY_AUTH_MODE too.
                if "RAY_AUTH_MODE" in os.environ or not maybe_enable_token_auth_if_token_available(False):
                    raise
                self._client = _Client(self.address)

    def submit(self, job: Job) -> str:
        """Sends the job; its id: the name, or name-2, name-3 ... where ended jobs have had that.

        Raises JobRefused where a job of that name still runs.
        """
        for _ in range(RECONNECTS):
            jobs = self.list()
            running = next((one for one in jobs if one.name == job.name and not one.ended), None)
            if running is not None:
                raise JobRefused(
                    f"{running.id} is {running.status}: follow it (rayrl job logs {job.name}), stop it (rayrl job stop "
                    f"{job.name}), or give this job another --name"
                )
            taken = {one.id for one in jobs}
            free = next(i for i in _ids(job.name) if i not in taken)
            try:
                with self._errors():
                    sent: str = self._client.submit_job(
                        entrypoint=job.entrypoint,
                        submission_id=free,
                        runtime_env=_runtime_env(job),
                        metadata={**job.metadata, NAME_KEY: job.name},
                    )
                    return sent
            except ClusterError as error:
                if "already exists" not in str(error):
                    raise
        raise JobRefused(f"others keep taking the name {job.name}: name this job otherwise")

    def list(self) -> list[Found]:
        """Jobs that were submitted, the oldest first."""
        with self._errors():
            found = [_found(one) for one in self._client.list_jobs() if one.submission_id is not None]
        return sorted(found, key=lambda one: (one.started_s or 0.0, one.id))

    def find(self, name: str) -> Found:
        """The newest job of that name, or the one with that id. Raises JobRefused where there is none."""
        jobs = self.list()
        named = [one for one in jobs if one.name == name] or [one for one in jobs if one.id == name]
        if not named:
            known = ", ".join(dict.fromkeys(one.name for one in reversed(jobs))) or "none"
            raise JobRefused(f"no job at {self.address} is named {name}; there are: {known}")
        return named[-1]

    def get(self, job_id: str) -> Found:
        """The job as it is now."""
        with self._errors():
            return _found(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """All that it has printed so far."""
        with self._errors():
            text: str = self._client.get_job_logs(job_id)
            return text

    def follow(self, job_id: str, write: Callable[[str], None]) -> Found:
        """Hands what the job prints to `write`, whole lines as they come, until it has ended. Breaks are bridged."""
        printed = breaks = 0
        while True:
            try:
                printed = asyncio.run(self._tail(job_id, printed, write))
                if (job := self.get(job_id)).ended:
                    break
                time.sleep(1)  # the dashboard has let go of it, as when it starts again
            except _Broken as broken:
                breaks = 1 if broken.printed > printed else breaks + 1
                printed = broken.printed
                if breaks > RECONNECTS:
                    raise CannotConnect(f"the log of {job_id} broke off {breaks} times ({broken})") from broken
                time.sleep(breaks)
        with contextlib.suppress(ClusterError):  # a log that isn't text
            if len(rest := self.logs(job_id)) > printed:  # also where it ended before it could be followed
                write(rest[printed:])
        return job

    async def _tail(self, job_id: str, printed: int, write: Callable[[str], None]) -> int:
        """Writes what comes behind the first `printed` characters; how many there have been in all."""
        seen = 0
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        try:
            while True:
                waiting = asyncio.ensure_future(anext(pieces))
                while not (await asyncio.wait({waiting}, timeout=QUIET_S))[0]:
                    if (await asyncio.to_thread(self.get, job_id)).ended:  # raises where the dashboard has gone
                        waiting.cancel()
                        return printed
                piece = waiting.result()
                seen += len(piece)
                if seen > printed:
                    write(piece[-(seen - printed) :])
                    printed = seen
        except StopAsyncIteration:
            return printed
        except (RuntimeError, aiohttp.ClientError, OSError, CannotConnect) as error:
            raise _Broken(str(error), printed) from error

    def stop(self, job_id: str, timeout_s: float = 120.0) -> Found:
        """Ends the job and waits until it has ended and nothing of it is left on the cluster.

        Raises ClusterError where it doesn't end within `timeout_s`, or leaves something.
        """
        with self._errors():
            self._client.stop_job(job_id)
        deadline = time.monotonic() + timeout_s
        while not (job := self.get(job_id)).ended:
            if time.monotonic() > deadline:
                raise ClusterError(f"{job_id} was told to stop and is still {job.status} after {timeout_s:.0f} s")
            time.sleep(0.5)
        deadline = time.monotonic() + LEFT_TIMEOUT_S
        while left := self.left(job):
            if time.monotonic() > deadline:
                raise ClusterError(f"{job_id} has ended, but {', '.join(left)} of it are still on the cluster")
            time.sleep(0.5)
        return job

    def left(self, job: Found) -> tuple[str, ...]:
        """What the cluster still holds of a job: its actors and placement groups."""
        if job.driver is None:  # it never joined
            return ()
        with self._errors(), _only_address(self.address):
            actors = list_actors(self.address, [("job_id", "=", job.driver), ("state", "!=", "DEAD")])
            groups = list_placement_groups(
                self.address, [("creator_job_id", "=", job.driver), ("state", "!=", "REMOVED")]
            )
        names = [f"actor {one.class_name}" for one in actors]
        return (*names, *(f"placement group {one.placement_group_id}" for one in groups))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Ray's errors as one sentence each."""
        try:
            yield
        except AuthenticationError as error:
            problem = "refuses this token" if "failed" in str(error) else "wants a token"
            raise CannotConnect(
                f"the cluster at {self.address} {problem}: set RAY_AUTH_MODE=token, and the cluster's token in "
                "RAY_AUTH_TOKEN or a file named by RAY_AUTH_TOKEN_PATH"
            ) from error
        except (OSError, requests.RequestException) as error:
            raise CannotConnect(
                f"no Ray dashboard answers at {self.address} ({type(error).__name__}): name it with --address "
                "http://HOST:8265"
            ) from error
        except RuntimeError as error:  # "Request failed with status code 400: Traceback ..."
            lines = [line for line in str(error).splitlines() if line.strip(" .")]
            hint = ""
            if "No available agent" in str(error):
                hint = (
                    " (the head's agent isn't up: it may still start, or another Ray on that machine has its ports: "
                    "ray start --dashboard-agent-listen-port)"
                )
            reason = lines[-1].strip() if lines else type(error).__name__
            raise ClusterError(f"{self.address}: {reason}{hint}") from error


class _Broken(Exception):
    """A log's connection that ended by itself, after `printed` characters."""

    def __init__(self, message: str, printed: int) -> None:
        super().__init__(message)
        self.printed = printed


def dashboard(address: str | None, environ: Mapping[str, str]) -> str:
    """The dashboard's URL: `address`, else what Ray's variables hold, else this machine's.

    Raises CannotConnect for an address of another kind.
    """
    asked = address or next((environ[name] for name in ADDRESS_VARIABLES if environ.get(name)), DEFAULT_ADDRESS)
    parts = urlsplit(asked)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CannotConnect(f"{asked} isn't the address of a dashboard: name it with --address http://HOST:8265")
    return asked.rstrip("/")


def is_plain_and_remote(address: str) -> bool:
    """Whether what is sent to a dashboard's URL can be read on its way."""
    parts = urlsplit(address)
    return parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")


@contextlib.contextmanager
def _only_address(address: str) -> Iterator[None]:
    """In the block Ray's clients use this address."""
    before = os.environ.get(ADDRESS_VARIABLES[0])
    os.environ[ADDRESS_VARIABLES[0]] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLES[0]]
        else:
            os.environ[ADDRESS_VARIABLES[0]] = before


def _runtime_env(job: Job) -> dict[str, Any]:
    sealed: dict[str, Any] = seal(job.secrets) if job.secrets else {}
    if job.secrets and not sealed:
        raise JobRefused(
            f"{', '.join(job.secrets)}: a secret is sent only to a cluster with tokens (RAY_AUTH_MODE=token); without "
            "them anybody who reaches its ports can read it, so set the variables where Ray is started there"
        )
    plain = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **job.env}
    runtime_env = {**sealed, "working_dir": job.working_dir, "env_vars": {**plain, **sealed.get("env_vars", {})}}
    return runtime_env if job.pip is None else {**runtime_env, "pip": job.pip}


def _ids(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _found(info: JobDetails) -> Found:
    metadata = info.metadata or {}
    return Found(
        id=info.submission_id,
        name=metadata.get(NAME_KEY, info.submission_id),
        status=str(info.status),
        entrypoint=info.entrypoint,
        metadata=metadata,
        message=info.message or "",
        started_s=info.start_time / 1000 if info.start_time else None,
        ended_s=info.end_time / 1000 if info.end_time else None,
        exit_code=info.driver_exit_code,
        driver=info.job_id,
    )
