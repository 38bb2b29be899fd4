import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cluster.errors import ActorLost, DoesNotFit
from rayrl import cli
from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig
from rayrl.errors import UserError

RUN = """\
policy: {model: tiny-random, train: {mode: lora}, cpus_per_rank: 0.25}
critic: {cpus_per_rank: 0.25}
rollout: {backend: hf, cpus_per_engine: 0.25}
data: {prompts: consultations-en}
rewards: [{name: length, kind: rule, rule: length_window, cpus_per_worker: 0.1}]
"""


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return str(path)


class Stage(types.ModuleType):
    """Stands for actors.ppo: notes what it was given, then does what the test says."""

    def __init__(self, raises: BaseException | None = None) -> None:
        super().__init__("actors.ppo")
        self.config: PPOConfig | None = None
        self.raises = raises

    def main(self, config_path: str) -> None:
        self.config = load(PPOConfig, config_path)
        if self.raises is not None:
            raise self.raises


def start(stage: Stage, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setitem(sys.modules, "actors.ppo", stage)
    return cli.main(["ppo", *argv])


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from rayrl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "took = time.process_time() - start\n"
        "print(took, *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "presets" in done.stdout
    took, *modules = done.stderr.split()
    assert float(took) < 0.5
    assert {"rayrl", "cluster"} <= set(modules)
    assert not {"torch", "ray", "pydantic", "transformers", "numpy", "yaml"} & set(modules)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("rayrl 0.")


def test_ppo_hands_the_resolved_config_to_the_stage(run_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    assert start(stage, monkeypatch, run_file, "steps=7", "rewards.length.weight=2") == 0
    assert stage.config == load(PPOConfig, run_file, ["steps=7", "rewards.length.weight=2"])


def test_nothing_is_written_before_the_run_begins(
    run_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert start(Stage(UserError("no such model")), monkeypatch, run_file, f"output_dir={folder}") == 2
    assert not folder.exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("the tokenizer has no chat template"), 2, "rayrl: the tokenizer has no chat template\n"),
        (DoesNotFit("9 GPUs are asked"), 2, "rayrl: 9 GPUs are asked\n"),
        (ActorLost("policy[1] died", "policy[1]", "step 3"), 1, "rayrl: policy[1] died\n"),
        (ValueError("one\ntwo"), 1, "rayrl: ValueError: one (set RAYRL_DEBUG=1 to see where)\n"),
        (KeyboardInterrupt(), 130, "rayrl: interrupted; the same command resumes the run\n"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    error: BaseException,
    code: int,
    said: str,
    run_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAYRL_DEBUG", raising=False)
    assert start(Stage(error), monkeypatch, run_file) == code
    assert capsys.readouterr().err == said


def test_debug_shows_the_traceback(
    run_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYRL_DEBUG", "1")
    assert start(Stage(UserError("no")), monkeypatch, run_file) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_bad_input_as_a_user_meets_it(run_file: str) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "RAYRL_DEBUG"}
    command = [sys.executable, "-m", "rayrl.cli", "ppo", run_file, "policy.optimizer.lrr=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "rayrl: unknown key 'policy.optimizer.lrr' on the command line; did you mean 'policy.optimizer.lr'?\n"
    )


def test_placeholders_stop_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    assert start(stage, monkeypatch, "huatuogpt") == 2
    assert stage.config is None
    assert "policy.model=PATH" in capsys.readouterr().err


def test_dry_run_prints_a_config_that_loads_and_the_plan(
    run_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stage = Stage()
    assert start(stage, monkeypatch, run_file, "--dry-run", "steps=5") == 0, "an override may follow an option"
    assert stage.config is None
    printed = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(printed, encoding="utf-8")
    assert load(PPOConfig, str(again)) == load(PPOConfig, run_file, ["steps=5"])
    for role in ("policy", "critic", "reference", "reward:length", "rollout"):
        assert f"\n# {role} " in printed
    assert "# fits this machine (" in printed


def test_dry_run_says_what_does_not_fit(
    run_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(Stage(), monkeypatch, run_file, "policy.cpus_per_rank=4096", "--dry-run") == 0
    assert "# the roles don't fit the cluster: asked policy 1 x 4096 CPU;" in capsys.readouterr().out
    assert start(Stage(), monkeypatch, run_file, "cluster.address=auto", "--dry-run") == 0
    assert "is checked before anything starts" in capsys.readouterr().out


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ppo huatuogpt ") and "two layers" in line for line in lines)


def test_report_needs_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["report", str(tmp_path)]) == 2, "an empty folder"
    (tmp_path / "config.yaml").touch()
    assert cli.main(["report", str(tmp_path)]) == 2, "another stage's"
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"rayrl: no run folder {tmp_path / 'nowhere'}")
    assert len(others) == 2 and all("isn't the folder of a `rayrl ppo` run" in line for line in others)


@pytest.mark.parametrize("argv", [["ppo", "x.yaml", "--dry-rn"], ["presets", "extra"], [], ["pppo"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: rayrl" in capsys.readouterr().err


def test_configuration_reference_is_up_to_date() -> None:
    script = Path(__file__).parent.parent / "scripts" / "build_config_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
