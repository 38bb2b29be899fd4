"""Runs sent to a Ray head with its job server, as on a cluster: by `rayrl submit` and by plain `ray job submit`.

The head has tokens and listens on loopback alone. Further down, what needs no head: test_submit_config.py.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_cluster import free_port
from run_cases import COMMAND, MARK, ONE_RANK, SMALL, described, leaves_nothing, marked

RAY = str(Path(sys.executable).with_name("ray"))
SECRET = "s3cret-" + "0123456789abcdef"
REWARD = """
import os

def length_of_the_secret(prompt, response, reference, fields):
    return float(len(os.environ.get("SUBMITTED_SECRET", "")))
"""


@dataclass(frozen=True)
class Head:
    """A Ray head of this file's own."""

    port: int
    dashboard: str
    environment: dict[str, str]
    folder: Path
    """Where Ray keeps its sessions and their logs."""

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """`rayrl` with these words, in a shell that has the token."""
        return subprocess.run(
            [COMMAND, *words],
            env={**self.environment, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def follow(self, *words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        """The same, to be read while it runs."""
        everything = {**self.environment, **environment}
        return subprocess.Popen(
            [COMMAND, *words],
            env=everything,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore Ctrl-C, and hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    def jobs(self) -> list[dict[str, object]]:
        """What the job server itself says of its jobs."""
        bearer = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=bearer)
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: list[dict[str, object]] = json.load(answer)
        return found

    def alive(self, table: str) -> list[object]:
        """Actors or placement groups that the cluster's own tables hold alive."""
        bearer = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/v0/{table}?limit=1000", headers=bearer)
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows = json.load(answer)["data"]["result"]["result"]
        return [row for row in rows if row["state"] not in ("DEAD", "REMOVED")]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with two CPUs; stopped by ending its own process and what that started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(COMMAND).parent}:{environment['PATH']}"
    port, dashboard, agent, client = (free_port() for _ in range(4))
    folder_of = tempfile.TemporaryDirectory(prefix="rj-", dir="/tmp", ignore_cleanup_errors=True)
    with folder_of as folder, leaves_nothing() as marks:
        environment |= marks
        command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
        options = ["--num-cpus=2", "--object-store-memory=150000000", f"--temp-dir={folder}"]
        options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        with (Path(folder) / "start.log").open("w") as log:
            process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        try:
            started = Head(port, f"http://127.0.0.1:{dashboard}", environment, Path(folder))
            deadline = time.monotonic() + 90
            while True:
                try:
                    assert started.jobs() == []
                    break
                except OSError:
                    assert time.monotonic() < deadline, "the job server didn't come up"
                    time.sleep(0.5)
            yield started
        finally:
            process.terminate()
            process.wait(timeout=60)


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process prints, up to the line that holds `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"no {text!r} in {seen} {process.stderr.read() if process.stderr else ''}")


def test_a_plain_ray_job_joins_the_cluster_of_its_job(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["rayrl", "ppo", "tiny", f"output_dir={run}", "steps=1", *SMALL, *ONE_RANK]
    submit = [RAY, "job", "submit", "--address", head.dashboard, "--", *words]
    done = subprocess.run(submit, env=head.environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["ray"]["started_here"] is False
    assert record["ray"]["address"].endswith(f":{head.port}")
    assert f"this is a submitted Ray job: joining its cluster at {record['ray']['address']}" in done.stdout
    assert steps_of(run) == [0]
    assert (run / "report.html").exists()
    assert_nothing_is_left(head)


def assert_nothing_is_left(head: Head) -> None:
    """The cluster holds no actor and no bundle, and no actor's process lives on (an idle worker may)."""
    deadline = time.monotonic() + 30
    while True:
        names = described(marked(head.environment[MARK]))
        left = [head.alive("actors"), head.alive("placement_groups"), [name for name in names if "Actor" in name]]
        if not any(left):
            break
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert names


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory: a configuration, a reward of its own, prompts that .gitignore leaves out."""
    folder = tmp_path / "work"
    (folder / "data").mkdir(parents=True)
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"Pain for {i} days."}]} for i in range(24)]
    (folder / "data/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / ".gitignore").write_text("data/\n", "utf-8")
    (folder / "my_reward.py").write_text(REWARD, "utf-8")
    (folder / ".env").write_text(f"SUBMITTED_SECRET={SECRET}\n", "utf-8")
    return folder


def words_of(head: Head, shared: Path, steps: int, *options: str) -> Sequence[str]:
    reward = {"name": "secret", "kind": "function", "path": "my_reward.length_of_the_secret", "cpus_per_worker": 0.05}
    words = ["submit", "--address", head.dashboard, "--shared-dir", str(shared), "--name", "first", *options, "--"]
    words += ["ppo", "tiny", f"steps={steps}", "output_dir=runs/first", "checkpoint.every=1", *SMALL, *ONE_RANK]
    return [*words, f"rewards=[{json.dumps(reward)}]", "data.prompts=data/prompts.jsonl"]


def test_submit_follow_stop_and_resume(head: Head, tmp_path: Path, work: Path) -> None:
    secret = {"SUBMITTED_SECRET": SECRET}
    shared, address = tmp_path / "shared", ("--address", head.dashboard)
    run = shared / "runs/first"
    follower = head.follow(*words_of(head, shared, 500, "--env", "SUBMITTED_SECRET"), cwd=work, **secret)
    seen = read_until(follower, "[  1/500]  update")
    assert "joining its cluster" in seen
    assert follower.poll() is None, "lines arrive while it runs"
    (job,) = [job for job in head.jobs() if job["submission_id"] == "first"]
    assert job["status"] == "RUNNING"

    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert f"first goes on. Follow it: rayrl job logs first --address {head.dashboard}; stop it: rayrl job stop" in said
    taken = head.run(*words_of(head, shared, 500), cwd=work)
    assert taken.returncode == 2
    assert taken.stderr.endswith("or give this job another --name\n") and "rayrl: first is RUNNING" in taken.stderr
    assert "first: RUNNING for " in head.run("job", "status", "first", *address).stdout

    follower = head.follow("job", "logs", "first", *address, cwd=work)
    read_until(follower, "[  2/500]  update")
    stopped = head.run("job", "stop", "first", *address)
    assert stopped.returncode == 0, stopped.stderr
    assert "first: STOPPED after " in stopped.stdout and "nothing of it is left on the cluster" in stopped.stdout
    assert follower.communicate(timeout=30)[1].startswith("first was stopped; ")
    assert follower.returncode == 1
    assert_nothing_is_left(head)

    done = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*[0-9]"))
    words = words_of(head, shared, done + 1, "--env", "SUBMITTED_SECRET")
    again = head.run(*words, cwd=work, **secret)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"first-2 is submitted; its results go to {run}" in again.stderr
    assert f"resuming after step {done} from" in again.stdout
    assert again.stderr.endswith(f"first-2 succeeded, results in {run}\n")
    assert steps_of(run) == list(range(done + 1))
    (last,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()][-1:]
    assert last["score/secret"] == len(SECRET), "actors have it too"
    assert_nothing_is_left(head)
    assert head.run("job", "list", *address).stdout.count("\n") == len([j for j in head.jobs() if j["submission_id"]])

    kept = [path for folder in (head.folder, shared) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "runtime_env_agent.log" for path in kept)
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in json.dumps(head.jobs()) + again.stdout + again.stderr + seen


def test_the_exit_code_is_the_jobs(head: Head, tmp_path: Path) -> None:
    model = tmp_path / "nowhere"
    words = ["submit", "--address", head.dashboard, "--name", "bad", "--", "ppo", "tiny", f"output_dir={tmp_path}/run"]
    done = head.run(*words, f"policy.model={model}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"rayrl: No checkpoint at {model}" in done.stdout
    assert done.stderr.endswith("bad failed with exit code 2\n")
    over = head.run("job", "stop", "bad", "--address", head.dashboard)
    assert over.returncode == 0 and over.stdout.startswith("bad: FAILED after ")


def test_the_token_is_needed(head: Head) -> None:
    ask = ("job", "list", "--address", head.dashboard)
    assert head.run(*ask).returncode == 0
    # As with ray.init: a token that is there is used without RAY_AUTH_MODE too.
    without = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_MODE"}
    assert subprocess.run([COMMAND, *ask], env=without, capture_output=True, timeout=60).returncode == 0
    other = head.run(*ask, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert other.returncode == 2
    assert f"the cluster at {head.dashboard} refuses this token: set RAY_AUTH_MODE=token" in other.stderr
    none = head.run(*ask, RAY_AUTH_MODE="disabled")
    assert none.returncode == 2 and "wants a token" in none.stderr
    unknown = head.run("job", "status", "nobody", "--address", head.dashboard)
    assert unknown.returncode == 2 and "is named nobody; there are: " in unknown.stderr
