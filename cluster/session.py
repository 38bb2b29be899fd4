"""Connects this process to Ray: a private cluster on this machine, or one that is there already.

A local cluster is this run's own: no dashboard, a token that only this process and its children know, ports on the
loopback interface alone, its files under a path short enough for Unix sockets. Left out: starting clusters on other
machines (`ray up`, KubeRay) and sending jobs to them (submission.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util import get_node_ip_address

from cluster.errors import CannotConnect

logger = logging.getLogger(__name__)

JOB_DRIVER_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this (that is its whole name) and RAY_ADDRESS for the entry point of a submitted job, and only there."""
HANDED_ON = ("RAYRL_ALLOW",)
"""What workers on a cluster that is joined are to know from the environment of the driver."""
MAX_TEMP_DIR_BYTES = 39
"""A Unix socket's path has 107 bytes; `/r/session_<date>_<pid>/sockets/plasma_store` takes 68 of them."""
TEMP_DIR_MB = 256
"""Room that a session's logs and sockets need."""
CLUSTER_VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""At 0 a node's address is the loopback one, and Ray listens there alone: what Ray does by itself on macOS."""
ON_LOOPBACK = {CLUSTER_VARIABLE: "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of a local cluster; each variable may be set otherwise on purpose."""
REACH_TIMEOUT_S = 10.0
"""Limit for the first TCP connection to a cluster's address; Ray itself would try for minutes."""


@dataclass(frozen=True)
class Session:
    """A connection to Ray."""

    address: str
    """HOST:PORT of the cluster's control store."""
    local: bool
    """Whether the cluster was started here and ends with the connection."""


@dataclass(frozen=True)
class Target:
    """Where to connect, and why there: a sentence for the log."""

    address: str
    why: str


@contextmanager
def connect(
    address: str = "local", num_cpus: int | None = None, object_store_mb: int = 512, log_to_driver: bool = False
) -> Iterator[Session]:
    """Connects to Ray for the length of a `with` block.

    Inside a submitted job, `local` joins the job's cluster. In a process that is already connected, that connection is
    used and left open.

    Args:
        address: `local`, `auto` (RAY_ADDRESS, or the cluster found on this machine) or HOST:PORT.
        num_cpus: logical CPUs of a local cluster; by default the machine's cores.
        object_store_mb: object store of a local cluster, in MiB.
        log_to_driver: print what actors print.

    Raises:
        CannotConnect: Ray can't start here, or nothing answers at the address.
    """
    if ray.is_initialized():
        logger.info("using the Ray connection that this process already has")
        yield Session(ray.get_runtime_context().gcs_address, local=False)
        return
    target = choose(address, os.environ)
    logger.info(target.why)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": log_to_driver}
    local = target.address == "local"
    with on_loopback() if local or _answers_on_loopback_alone(target.address) else nullcontext():
        try:
            if local:
                _start(num_cpus, object_store_mb, quiet)
            else:
                _join(target.address, quiet)
            yield Session(ray.get_runtime_context().gcs_address, local)
        finally:
            ray.shutdown()


@contextmanager
def on_loopback() -> Iterator[None]:
    """In the block, what this process and its children start (Ray, gloo, NCCL) listens on the loopback interface alone.

    Otherwise Ray's control store, raylet and agents and every worker listen on all interfaces.
    """
    ours = {name: value for name, value in ON_LOOPBACK.items() if name not in os.environ}
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(ours)
    if CLUSTER_VARIABLE in ours:
        ray_constants.ENABLE_RAY_CLUSTER = False  # of this process, which read the variable when it imported ray
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in ours:
            os.environ.pop(name, None)


def choose(address: str, environ: Mapping[str, str]) -> Target:
    """Decides between starting Ray and joining it.

    Raises:
        CannotConnect: an address of a kind that a driver can't use.
    """
    if address in ("local", "auto") and JOB_DRIVER_VARIABLE in environ:
        job = environ["RAY_ADDRESS"]
        return Target(job, f"this is a submitted Ray job: joining its cluster at {job} (address: {address})")
    if address == "local":
        return Target("local", "starting Ray on this machine (address: local)")
    wanted = environ["RAY_ADDRESS"] if address == "auto" and "RAY_ADDRESS" in environ else address
    if "://" in wanted:
        raise CannotConnect(
            f"{wanted} isn't the address of a Ray control store (HOST:PORT); through a dashboard or Ray Client submit "
            "the command as a job: ray job submit --address http://HOST:8265 -- rayrl ..."
        )
    return Target(wanted, f"joining the Ray cluster at {wanted} (address: {address})")


def _answers_on_loopback_alone(address: str) -> bool:
    """Whether a cluster was started as by `on_loopback`: Ray would look for it at this node's address."""
    host, _, port = address.rpartition(":")
    return host in ("127.0.0.1", "localhost") and _answers(host, port) and not _answers(get_node_ip_address(), port)


def _answers(host: str, port: str) -> bool:
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True


def handed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of HANDED_ON that the cluster's processes wouldn't have without being given them."""
    from_job = environ.get(JOB_DRIVER_VARIABLE, "")  # Ray refuses to be told the same twice
    return {name: environ[name] for name in HANDED_ON if name in environ and f'"{name}"' not in from_job}


def temp_root(environ: Mapping[str, str], needed_mb: int = TEMP_DIR_MB) -> Path:
    """The folder for a local cluster's sessions: short, writable, with room; one a user, so that nobody shares it.

    RAY_TMPDIR and TMPDIR are followed where they are short enough, else /tmp is taken.

    Raises:
        CannotConnect: it can't be written, or the disk is full.
    """
    asked = [Path(environ[name]) for name in ("RAY_TMPDIR", "TMPDIR") if name in environ]
    named = [base / f"rayrl-{os.getuid()}" for base in [*asked, Path("/tmp")]]
    root = next((path for path in named if len(os.fsencode(path)) <= MAX_TEMP_DIR_BYTES), named[-1])
    if asked and root != named[0]:
        logger.info("%s is too long for Unix sockets: Ray's files go to %s", asked[0], root)
    advice = "set RAY_TMPDIR to a short path with room"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if root.lstat().st_uid != os.getuid():  # another's folder, or link to any
            raise CannotConnect(f"{root}, the folder for Ray's files, belongs to another user; {advice}")
        root.chmod(0o700)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise CannotConnect(f"Ray's files can't be written under {root} ({error.strerror}); {advice}") from error
    free_mb = shutil.disk_usage(root).free >> 20
    if free_mb < needed_mb:
        raise CannotConnect(f"Ray's files need {needed_mb} MB under {root}, and {free_mb} MB are free; {advice}")
    return root


def _start(num_cpus: int | None, object_store_mb: int, quiet: Mapping[str, int]) -> None:
    shm = Path("/dev/shm")
    in_memory = shm.is_dir() and shutil.disk_usage(shm).free >> 20 > object_store_mb
    if not in_memory:
        logger.warning("/dev/shm has no room for %d MB: the object store goes to disk and is slower", object_store_mb)
    root = temp_root(os.environ, TEMP_DIR_MB + (0 if in_memory else object_store_mb))
    _private_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=object_store_mb << 20,
            include_dashboard=False,
            _temp_dir=str(root / "r"),  # Ray opens its own folder to everybody; nobody comes to it
            **quiet,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise CannotConnect(f"Ray didn't start on this machine: {_first_line(error)} (its logs: {root})") from error


def _join(address: str, quiet: Mapping[str, int]) -> None:
    if address != "auto":
        _reach(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": handed_on(os.environ)}, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise CannotConnect(
            f"no Ray cluster could be joined at {address}: {_first_line(error)} "
            "(if it uses tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before starting)"
        ) from error


def _private_token() -> None:
    """Chooses token authentication for the local cluster, with a token of this process's own.

    Ray's port takes code from anyone who reaches it, so a new local cluster has token authentication unless
    RAY_AUTH_MODE says otherwise. That is Ray's default when the variable is unset; setting it to `token` here, after
    `import ray` has read it, would leave this process without authentication and its children with it. Without a token
    Ray would write one to the home folder, for good; a token in the environment needs no home. It stays set, since Ray
    keeps the first one it reads for the life of the process.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if not named and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _reach(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise CannotConnect(f"address: {address!r} is neither `local`, `auto` nor HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise CannotConnect(
            f"nothing answers at {address} ({error}); start Ray there (`ray start --head`) or use address: local"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
