import os
import socket
import stat
from pathlib import Path

import pytest
import ray

from cluster import session
from cluster.errors import CannotConnect

JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": "10.0.0.1:6379"}


@pytest.mark.parametrize(
    ("address", "environ", "target", "why"),
    [
        ("local", {}, "local", "starting Ray on this machine"),
        ("local", {"RAY_ADDRESS": "10.0.0.1:6379"}, "local", "starting Ray on this machine"),
        ("local", JOB, "10.0.0.1:6379", "this is a submitted Ray job: joining its cluster at 10.0.0.1:6379"),
        ("auto", JOB, "10.0.0.1:6379", "this is a submitted Ray job"),
        ("auto", {}, "auto", "joining the Ray cluster at auto"),
        ("auto", {"RAY_ADDRESS": "10.0.0.1:6379"}, "10.0.0.1:6379", "joining the Ray cluster at 10.0.0.1:6379"),
        ("10.0.0.2:6379", JOB, "10.0.0.2:6379", "joining the Ray cluster at 10.0.0.2:6379"),
    ],
)
def test_start_or_join(address: str, environ: dict[str, str], target: str, why: str) -> None:
    chosen = session.choose(address, environ)
    assert chosen.address == target
    assert chosen.why.startswith(why)


@pytest.mark.parametrize(
    ("address", "environ"),
    [("ray://head:10001", {}), ("http://head:8265", {}), ("auto", {"RAY_ADDRESS": "http://head:8265"})],
)
def test_client_and_dashboard_addresses_point_to_job_submission(address: str, environ: dict[str, str]) -> None:
    with pytest.raises(CannotConnect, match="ray job submit --address"):
        session.choose(address, environ)


def test_temp_root_is_short_private_and_the_users_own(tmp_path: Path) -> None:
    short = Path("/tmp") / f"t{os.getpid()}"
    root = session.temp_root({"RAY_TMPDIR": str(short)})
    try:
        assert root == short / f"rayrl-{os.getuid()}"
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert list(root.iterdir()) == []
        root.chmod(0o777)  # as an earlier version left it
        assert session.temp_root({"RAY_TMPDIR": str(short)}) == root
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
    finally:
        root.rmdir()
        short.rmdir()
    deep = tmp_path / ("d" * 40)
    assert session.temp_root({"TMPDIR": str(deep)}) == Path("/tmp") / f"rayrl-{os.getuid()}"
    assert not deep.exists()


def test_longest_temp_root_leaves_room_for_sockets() -> None:
    socket_path = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert session.MAX_TEMP_DIR_BYTES + len(socket_path) <= 107


def test_full_or_closed_disk_is_said() -> None:
    with pytest.raises(CannotConnect, match=r"need 1000000000 MB under .*rayrl-.* MB are free; set RAY_TMPDIR"):
        session.temp_root({}, needed_mb=10**9)
    with pytest.raises(CannotConnect, match=r"can't be written under /proc/rayrl-.*set RAY_TMPDIR"):
        session.temp_root({"RAY_TMPDIR": "/proc"})


def test_unreachable_addresses_fail_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(CannotConnect, match=f"nothing answers at {address}"), session.connect(address):
        raise AssertionError("connected to nothing")
    with pytest.raises(CannotConnect, match="neither `local`, `auto` nor HOST:PORT"), session.connect("head"):
        raise AssertionError("connected to nothing")
    assert not ray.is_initialized()
