"""What `rayrl submit` decides before anything is sent: paths, names, secrets, and what goes along."""

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import upload
from cluster.errors import CannotConnect, JobRefused
from cluster.submission import dashboard, is_plain_and_remote
from cluster.upload import Upload
from rayrl import cli
from rayrl.commands.job_config import JobConfig, prepare
from rayrl.commands.stage import add_arguments
from rayrl.config.commands import COMMANDS
from rayrl.config.load import load
from rayrl.config.pipeline import PipelineConfig
from rayrl.config.ppo import PPOConfig
from rayrl.errors import UserError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def test_ignore_files_count_in_every_folder_and_what_is_named_goes_all_the_same(tmp_path: Path) -> None:
    names = ["run.yaml", "src/a.py", "src/b.log", "data/p.jsonl", "data/deep/q.jsonl", "big/x", "notes.txt"]
    unasked = [".git/HEAD", ".venv/bin/python", "runs/a/metrics.jsonl", "src/__pycache__/a.pyc", "w/model.safetensors"]
    keys = [".env", "deploy/server.pem", "home/.ssh/config"]
    root = write(tmp_path / "work", **dict.fromkeys([*names, *unasked, *keys], "12345"))
    write(root, **{".gitignore": "data/\n", "src/.rayignore": "*.log\n"})
    (tmp_path / "outside").write_text("x")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "alias.py").symlink_to(root / "src/a.py")
    left = {".gitignore", "src/.rayignore", "run.yaml", "src/a.py", "alias.py", "notes.txt"}
    assert set(Upload.of(root, ["big/"]).files) == left
    assert Upload.of(root, ["*.txt"]).files["src/a.py"] == 5
    named = Upload.of(root, ["big/"], ["data", "w/model.safetensors"])
    assert set(named.files) == left | {"data/p.jsonl", "data/deep/q.jsonl", "w/model.safetensors"}


def test_the_archive_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    root = write(tmp_path / "work", **{"a.txt": "hello", "b/run.sh": "#!/bin/sh\n"})
    (root / "b/run.sh").chmod(0o755)
    packed = []
    for name in ("one.zip", "two.zip"):
        os.utime(root / "a.txt", (1, len(packed)))
        Upload.of(root).pack(tmp_path / name, {".rayrl/run.yaml": "steps: 1\n"})
        packed.append((tmp_path / name).read_bytes())
    assert packed[0] == packed[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.txt", "b/run.sh", ".rayrl/run.yaml"]
        assert archive.getinfo("b/run.sh").external_attr >> 16 == 0o755


def test_too_much_is_said_beforehand_with_the_largest_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "LIMIT_BYTES", 1 << 20)
    root = write(tmp_path / "work", **{"a.txt": "x"})
    for name, size in (("data/raw/pages.dat", 3 << 20), ("media/x.png", 2 << 20)):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(os.urandom(size))
    with pytest.raises(JobRefused) as caught:
        Upload.of(root).pack(tmp_path / "up.zip", {})
    said = str(caught.value)
    assert "has 5 MiB, 5 packed to upload, and Ray takes 1 (largest, in MiB: data/raw 3, media 2)" in said
    Upload.of(root, ["data/", "media/"]).pack(tmp_path / "up.zip", {})


def arguments(command: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, COMMANDS[command])
    return parser.parse_args(words)


def prepared(command: str, *words: str, shared: str | None = None) -> JobConfig:
    return prepare(command, arguments(command, *words), shared)


def reload(folder: Path, config: JobConfig) -> PPOConfig:
    (folder / "resolved.yaml").write_text(config.text, "utf-8")
    return load(PPOConfig, str(folder / "resolved.yaml"))


def test_what_a_run_writes_must_outlive_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^output_dir \(runs/tiny\): a job runs in a folder that is deleted with it"):
        prepared("ppo", "tiny")
    assert prepared("ppo", "tiny", "output_dir=/shared/a/").name == "a"
    assert prepared("ppo", "tiny", "output_dir=~/b").output_dir == "~/b"
    assert prepared("corpus", "tiny", "output_dir=s3://bucket/corpus?region=x").name == "corpus"
    judge = "judge: {endpoint: 'http://127.0.0.1:1/v1', model: m, api_key_env: JUDGE_KEY, criteria: [{name: safety}]}"
    rewards = f"rewards=[{{name: asks, kind: judge, {judge}}}]"
    with pytest.raises(UserError, match=r"^rewards\.asks\.judge\.cache \(runs/judge\.sqlite\): "):
        prepared("ppo", "tiny", "output_dir=/shared/a", rewards)
    ready = prepared("ppo", "tiny", "steps=7", rewards, shared="/shared")
    config = reload(tmp_path, ready)
    assert (config.output_dir, config.steps) == ("/shared/runs/tiny", 7)
    assert config.rewards[0].judge is not None and config.rewards[0].judge.cache == "/shared/runs/judge.sqlite"
    assert ready.key_variables == ("JUDGE_KEY",)


def test_a_pipelines_folders_move_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ready = prepared("pipeline", "tiny", shared="/shared")
    (tmp_path / "resolved.yaml").write_text(ready.text, "utf-8")
    config = load(PipelineConfig, str(tmp_path / "resolved.yaml"))
    assert config.output_dir.startswith("/shared/")
    for stage in config.plan():
        assert stage.config.model_dump()["output_dir"] == f"{config.output_dir}/{stage.name}"
    assert "runs/judge.sqlite" not in ready.text.replace("/shared/runs/judge.sqlite", "")


def test_what_a_run_reads_goes_along_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = write(tmp_path / "work", **{"data/p.jsonl": "", "length": "not a path", "gae": ""})
    write(tmp_path, **{"elsewhere.jsonl": ""})
    monkeypatch.chdir(work)
    base = ("ppo", "tiny", "output_dir=/shared/a")
    assert prepared(*base).inputs == ()
    assert prepared(*base, "data.prompts=data/p.jsonl").inputs == ("data/p.jsonl",)
    assert prepared(*base, "data.prompts=/data/on/the/cluster.jsonl").inputs == ()
    with pytest.raises(UserError, match=r"^data\.prompts: \.\./elsewhere\.jsonl lies outside of the working directory"):
        prepared(*base, "data.prompts=../elsewhere.jsonl")
    with pytest.raises(UserError, match=r"^data\.prompts: \.\./gone\.jsonl lies outside of the working directory"):
        prepared(*base, "data.prompts=../gone.jsonl")
    with pytest.raises(UserError, match=r"^data\.prompts: there is no data/gone\.jsonl in the working directory"):
        prepared(*base, "data.prompts=data/gone.jsonl")
    later = "stages.ppo.data.prompts=data/gone.jsonl"
    with pytest.raises(UserError, match=r"^stages\.ppo\.data\.prompts: there is no data/gone\.jsonl"):
        prepared("pipeline", "tiny", later, shared="/shared")
    assert prepared("pipeline", "tiny", later, "until=reward", shared="/shared").inputs == ()
    function = "rewards=[{name: form, kind: function, path: marks.json}]"
    assert prepared(*base, function).inputs == (), "a function may be called as files end"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--", "ppo", "tinny"], "did you mean the preset 'tiny'?"),
        (["--", "ppo", "tiny", "output_dir=/s/a", "policy.optimizr=1"], "did you mean 'policy.optimizer'?"),
        (["--", "ppo", "huatuogpt", "output_dir=/s/a"], "policy.model=PATH"),
        (["--", "report", "x"], "`rayrl report` doesn't run as a job"),
        (["--env", "KEY_NOT_SET", "--", "ppo", "tiny"], "KEY_NOT_SET isn't set in this shell"),
        (["--env", "KEY=value-never-shown", "--", "ppo", "tiny"], "export KEY and pass --env KEY"),
        (["--name", "a/b", "--", "ppo", "tiny", "output_dir=/s/a"], "'a/b' can't name a job"),
        (["--working-dir", "gone", "--", "ppo", "tiny"], "gone isn't a folder"),
        (["--pip", "gone.txt", "--", "ppo", "tiny"], "gone.txt isn't a file"),
        (["--shared-dir", "here", "--", "ppo", "tiny"], "here isn't an absolute path"),
        (["--address", "head:6379", "--", "ppo", "tiny", "output_dir=/s/a"], "isn't the address of a dashboard"),
        (["--address", "http://127.0.0.1:9", "--", "ppo", "tiny", "output_dir=/s/a"], "no Ray dashboard answers at"),
    ],
)
def test_what_is_refused_here(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["submit", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert "value-never-shown" not in said


def test_the_resolved_configuration_can_be_seen_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shared-dir", "/shared", "--working-dir", str(tmp_path)]
    assert cli.main(["submit", *words, "--", "rayrl", "ppo", "tiny", "--dry-run", "steps=3"]) == 0
    assert "output_dir: /shared/runs/tiny" in capsys.readouterr().out


def test_the_address_that_is_given_wins() -> None:
    ray = {"RAY_API_SERVER_ADDRESS": "https://api:1/", "RAY_ADDRESS": "http://head:8265"}
    assert dashboard("http://mine:2/", ray) == "http://mine:2"
    assert dashboard(None, ray) == "https://api:1"
    assert dashboard(None, {"RAY_ADDRESS": "http://head:8265"}) == "http://head:8265"
    assert dashboard(None, {}) == "http://127.0.0.1:8265"
    with pytest.raises(CannotConnect, match=r"^10\.0\.0\.1:6379 isn't the address of a dashboard"):
        dashboard(None, {"RAY_ADDRESS": "10.0.0.1:6379"})
    assert is_plain_and_remote("http://head:8265")
    assert not is_plain_and_remote("https://head") and not is_plain_and_remote("http://127.0.0.1:8265")


SEALED = """\
import os
from cluster.sealed import cluster_token, open_env, seal
values = {"KEY": "open sesame", "OTHER": "中"}
made = seal(values)
if cluster_token() is None:
    print(made)
else:
    assert "sesame" not in str(made) and seal(values) != made
    os.environ |= made["env_vars"]
    open_env()
    print(os.environ["KEY"], os.environ["OTHER"], made["worker_process_setup_hook"])
    from ray._raylet import AuthenticationTokenLoader
    os.environ["RAY_AUTH_TOKEN"] = "another"
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        open_env()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_secrets_travel_under_the_clusters_token() -> None:
    """In processes of their own, since Ray reads the token once."""

    def said(**environment: str) -> str:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        command = [sys.executable, "-c", SEALED]
        done = subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with_token = said(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="t" * 32).splitlines()
    assert with_token[0] == "open sesame 中 cluster.sealed.open_env"
    assert with_token[1].startswith("ClusterError the job's secrets can't be opened")
    assert said(RAY_AUTH_MODE="disabled") == "{}\n"
