"""`ray job submit -- rayrl ppo tiny` on a Ray head with its job server, as on a cluster."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from run_cases import COMMAND, MARK, ONE_RANK, SMALL, leaves_nothing, marked

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A Ray head of this test's own."""

    port: int
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with two CPUs; stopped by ending its own process and what that started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A head's ports take code from whoever reaches them: a token, and one that isn't written to the home folder.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    port, dashboard = free_ports(2)
    folder_of = tempfile.TemporaryDirectory(prefix="rj-", dir="/tmp", ignore_cleanup_errors=True)
    with folder_of as folder, leaves_nothing() as marks:
        environment |= marks
        command = [RAY, "start", "--head", "--block", f"--port={port}"]
        options = ["--num-cpus=2", "--object-store-memory=150000000", f"--temp-dir={folder}"]
        options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        with (Path(folder) / "start.log").open("w") as log:
            process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        try:
            yield Head(port, f"http://127.0.0.1:{dashboard}", environment)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for_job_server(head: Head) -> None:
    """Until the dashboard answers for jobs; it starts some seconds after the head."""
    bearer = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers=bearer)
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert json.load(answer) == []
                return
        except OSError:
            assert time.monotonic() < deadline, "the job server didn't come up"
            time.sleep(0.5)


def test_a_submitted_run_joins_the_cluster_of_its_job(head: Head, tmp_path: Path) -> None:
    wait_for_job_server(head)
    run = tmp_path / "run"
    command = [COMMAND, "ppo", "tiny", f"output_dir={run}", "steps=1", *SMALL, *ONE_RANK]
    submit = [RAY, "job", "submit", "--address", head.dashboard, "--", *command]
    done = subprocess.run(submit, env=head.environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["ray"]["started_here"] is False
    assert record["ray"]["address"].endswith(f":{head.port}")
    assert f"this is a submitted Ray job: joining its cluster at {record['ray']['address']}" in done.stdout
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()] == [0]
    assert (run / "report.html").exists()
    # The run gave back what it had reserved, and its actors are gone, while the cluster lives on.
    alive = {process.pid for process in marked(head.environment[MARK])}
    assert alive
    assert not alive & {actor["pid"] for actor in record["actors"].values()}
