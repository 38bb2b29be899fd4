"""Whole runs on a local Ray: the preset `tiny` with two policy ranks and a real vLLM engine, then other choices.

Each run is made once and looked at by many tests.
"""

import json
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_cases import ONE_RANK, SMALL, rayrl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig
from rayrl.models.builtin import resolve_model
from rayrl.tracking.rows import read_rows, read_samples

STEPS = 3
ENGINE_GAP = 1e-4
"""Between engine and trainer, nats a token, in fp32: vLLM differs from Hugging Face by 2e-5 at the most."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    arguments: tuple[str, ...]
    done: subprocess.CompletedProcess[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
        return content


def run(folder: Path, *overrides: str, env: dict[str, str] | None = None) -> Run:
    arguments = ("ppo", "tiny", f"output_dir={folder}", *SMALL, *overrides)
    done = rayrl(*arguments, env=env)
    assert done.returncode == 0, done.stderr
    return Run(folder, arguments, done)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return state


def changed(folder: str | Path) -> set[str]:
    """Names of the parameters that differ from the start."""
    start, end = weights(resolve_model("tiny-random")), weights(folder)
    assert start.keys() == end.keys()
    return {name for name in start if not torch.equal(start[name], end[name])}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two policy and two critic ranks, a reference, two rules and a vLLM engine."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return run(folder, f"steps={STEPS}", "checkpoint.every=2", "logging.loggers=[tensorboard]")


def test_who_took_part(tiny: Run) -> None:
    record = tiny.record
    assert record["actors"]["rollout[0]"]["engine"] == "vllm.entrypoints.llm.LLM"
    assert "rollout: 1 engine(s) of vllm.entrypoints.llm.LLM" in tiny.done.stderr
    expected = ["critic[0]", "critic[1]", "policy[0]", "policy[1]", "reference[0]", "reward:length[0]"]
    assert sorted(record["actors"]) == [*expected, "reward:repetition[0]", "rollout[0]"]
    assert len({actor["pid"] for actor in record["actors"].values()}) == 8
    learned = [actor["dtype"] for name, actor in record["actors"].items() if not name.startswith("reward")]
    assert set(learned) == {"float32"}
    assert record["ray"]["started_here"] is True
    assert record["transfer_backend"] == "shared_memory"
    assert {"python", "ray", "torch", "deepspeed"} <= record["versions"].keys()


def test_every_step_was_sampled_by_the_weights_of_the_step_before(tiny: Run) -> None:
    assert [row["step"] for row in tiny.rows] == list(range(STEPS))
    # The coordinator stops the run if an answer carries another version; the gap shows that the version is true.
    assert [row["weights/version"] for row in tiny.rows] == list(range(STEPS))
    assert all(0 < row["engine/logprob_gap"] < ENGINE_GAP for row in tiny.rows)
    assert all(row["engine/logprob_gap_max"] < 10 * ENGINE_GAP for row in tiny.rows)
    assert all(row["policy/grad_norm"] > 0 for row in tiny.rows)


def test_kl_starts_at_zero_and_grows(tiny: Run) -> None:
    kls = [row["kl/mean_per_sequence"] for row in tiny.rows]
    assert abs(kls[0]) < 1e-5
    assert all(abs(kl) > 1e-3 for kl in kls[1:])
    assert all(row["kl/coef"] == 0.02 for row in tiny.rows)


def test_held_out_answers_are_compared_with_those_before_training(tiny: Run) -> None:
    row = tiny.rows[-1]
    assert row["eval/wins"] + row["eval/ties"] + row["eval/losses"] == pytest.approx(1)
    assert row["eval/win_rate_low"] < row["eval/win_rate"] < row["eval/win_rate_high"]
    assert all("eval/win_rate" not in other for other in tiny.rows[:-1])  # evaluated at the end alone
    assert "Wins against the start" in (tiny.folder / "report.html").read_text(encoding="utf-8")


def test_scores_add_up(tiny: Run) -> None:
    for row in tiny.rows:
        assert row["score/mixed"] == pytest.approx(row["score/length"] + 0.5 * row["score/repetition"])
        assert row["omitted/length"] == row["omitted/repetition"] == 0
    samples = read_samples(tiny.folder / "samples.jsonl")
    assert {sample.step for sample in samples} == set(range(STEPS))
    for sample in samples:
        assert sample.mixed == pytest.approx(sample.raw["length"] + 0.5 * sample.raw["repetition"])
        assert sample.response and sample.messages[-1]["role"] == "user"
        assert 1 <= sample.num_tokens <= 8


def test_time_is_accounted_for(tiny: Run) -> None:
    for row in tiny.rows:
        phases = [row[f"time/{phase}"] for phase in ("generate", "score", "update", "sync", "coordinator")]
        rest = sum(row[key] for key in ("time/evaluate", "time/checkpoint") if key in row)
        assert sum(phases) + rest == pytest.approx(row["time/step"])
        assert all(0 < row[f"busy/{role}"] <= 1 for role in ("policy", "critic", "rollout", "reference"))
        assert 0 <= row["time/nothing_running"] < row["time/step"]


def test_evaluation_before_and_after(tiny: Run) -> None:
    files = sorted(path.name for path in (tiny.folder / "evaluation").iterdir())
    assert files == ["step-000000.jsonl", "step-000003.jsonl"]
    before, after = (read_samples(tiny.folder / f"evaluation/step-00000{step}.jsonl") for step in (0, STEPS))
    assert [s.prompt_id for s in before] == [s.prompt_id for s in after]
    assert len({s.prompt_id for s in before}) == 4
    trained = {s.prompt_id for s in read_samples(tiny.folder / "samples.jsonl")}
    assert not trained & {s.prompt_id for s in before}
    assert tiny.rows[-1]["eval/mixed"] == pytest.approx(sum(s.mixed for s in after) / len(after))
    summary = json.loads((tiny.folder / "summary.json").read_text("utf-8"))
    assert "Mixed score" in tiny.done.stdout
    assert summary["kl"]["mean_per_sequence"] == tiny.rows[-1]["kl/mean_per_sequence"]


def test_checkpoints_are_models_that_transformers_loads(tiny: Run) -> None:
    kept = sorted(path.name for path in (tiny.folder / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"]
    policy = tiny.folder / "policy"
    assert policy.is_symlink()
    assert policy.resolve() == (tiny.folder / "checkpoints/step-000003/policy").resolve()
    assert changed(policy) == set(weights(policy))  # full fine-tuning moves everything
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(resolve_model("tiny-random")).get_vocab()
    assert tokenizer.chat_template
    critic = AutoModelForSequenceClassification.from_pretrained(tiny.folder / "checkpoints/step-000003/critic")
    assert critic.score.weight.abs().sum() > 0  # it started at 0
    state = json.loads((tiny.folder / "checkpoints/step-000003/state.json").read_text("utf-8"))
    assert (state["step"], state["best_step"]) == (STEPS, STEPS)


def test_config_and_report(tiny: Run) -> None:
    config = load(PPOConfig, str(tiny.folder / "config.yaml"))
    assert config == load(PPOConfig, "tiny", tiny.arguments[2:])
    page = (tiny.folder / "report.html").read_text("utf-8")
    assert page.count("<svg") + page.count("data:image") >= 4
    assert "length_window" in page
    events = list((tiny.folder / "tensorboard").iterdir())
    assert len(events) == 1
    assert events[0].stat().st_size > 1000
    assert not [path for path in tiny.folder.rglob("*") if path.name.endswith((".new", ".partial"))]


def test_the_same_command_again_has_nothing_to_do(tiny: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*.jsonl")}
    again = rayrl(*tiny.arguments)
    assert again.returncode == 0
    assert f"is done: {STEPS} of {STEPS} steps; nothing to train" in again.stdout
    assert "Mixed score" in again.stdout
    assert "starting Ray" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*.jsonl")} == before


def test_a_lost_summary_is_made_again(tiny: Run) -> None:
    """As after a kill between the last checkpoint and the summary."""
    path = tiny.folder / "summary.json"
    before = path.read_text("utf-8")
    path.unlink()
    assert rayrl(*tiny.arguments).returncode == 0
    assert path.read_text("utf-8") == before


REWARD_MODULE = """\
def short_prompt(prompt, response, reference, fields, *, longest):
    if len(prompt[-1]["content"]) > longest:
        raise LookupError("too long to judge")
    return 1.0
"""


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """GRPO on the last block, no critic; a reward model, a function that fails at times; the Hugging Face sampler."""
    folder = tmp_path_factory.mktemp("grpo")
    (folder / "own_rewards.py").write_text(REWARD_MODULE, "utf-8")
    start = resolve_model("tiny-random")
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(folder / "scorer")
    AutoTokenizer.from_pretrained(start).save_pretrained(folder / "scorer")
    prompts = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": "My knee hurts." + " Still." * i}]} for i in range(12)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")
    rewards = [
        {"name": "judge", "kind": "model", "model": str(folder / "scorer"), "normalise": "running_std", "clip": 3.0},
        {
            "name": "own",
            "kind": "function",
            "path": "own_rewards.short_prompt",
            "options": {"longest": 50},
            "on_failure": "omit",
            "weight": 0.5,
        },
    ]
    return run(
        folder / "run",
        "steps=2",
        "rollout.backend=hf",
        "samples_per_prompt=2",
        "policy.train.mode=last_n",
        "policy.train.num_layers=1",
        "algorithm.estimator=grpo",
        "algorithm.kl={place: loss, estimator: k3, controller: adaptive, coef: 0.1, target: 0.001, horizon: 80}",
        "algorithm.stop_kl=1.0e-9",
        "algorithm.missing_eos_penalty=0.25",
        f"data.prompts={folder / 'prompts.jsonl'}",
        f"rewards={json.dumps([{**entry, 'cpus_per_worker': 0.05} for entry in rewards])}",
        "mixture.normalise=batch_whiten",
        env={"PYTHONPATH": str(folder)},
    )


def test_grpo_needs_neither_critic_nor_reference_actors(grpo: Run) -> None:
    actors = grpo.record["actors"]
    assert sorted(actors) == ["policy[0]", "policy[1]", "reward:judge[0]", "reward:own[0]", "rollout[0]"]
    assert actors["rollout[0]"]["engine"] == "transformers.models.llama.modeling_llama.generate"
    assert not any(key.startswith(("value/", "loss/value")) for key in grpo.rows[0])
    assert not (grpo.folder / "checkpoints/step-000002/critic").exists()


def test_only_the_last_block_and_the_final_norm_moved(grpo: Run) -> None:
    names = weights(grpo.folder / "policy")
    assert changed(grpo.folder / "policy") == {n for n in names if "layers.1." in n or n == "model.norm.weight"}
    assert abs(grpo.rows[0]["kl/mean_per_sequence"]) < 1e-5
    assert all(row["engine/logprob_gap"] < ENGINE_GAP for row in grpo.rows)


def test_kl_coefficient_adapts_once_a_step(grpo: Run) -> None:
    for row, after in pairwise(grpo.rows):
        error = min(max(row["kl/mean_per_sequence"] / 0.001 - 1, -0.2), 0.2)
        assert after["kl/coef"] == pytest.approx(row["kl/coef"] * (1 + error * 8 / 80))
    state = json.loads((grpo.folder / "checkpoints/step-000002/state.json").read_text("utf-8"))
    assert state["kl"]["value"] != grpo.rows[-1]["kl/coef"]


def test_epochs_end_at_the_kl_limit(grpo: Run) -> None:
    assert all(row["policy/optimizer_steps"] < 4 for row in grpo.rows)  # of 2 epochs of 2 minibatches


def test_failures_are_omitted_and_counted(grpo: Run) -> None:
    samples = read_samples(grpo.folder / "samples.jsonl")
    assert any(sample.raw["own"] is None for sample in samples)
    for sample in samples:
        assert (sample.raw["own"] is None) == (len(sample.messages[-1]["content"]) > 50)
    assert sum(row["omitted/own"] for row in grpo.rows) > 0
    assert all(row["omitted/own"] % 2 == 0 for row in grpo.rows)  # two answers a prompt
    assert all(row["omitted/judge"] == 0 for row in grpo.rows)
    assert all(row["score/own"] == 1.0 for row in grpo.rows if row["omitted/own"] < 8)


def test_lora_run_leaves_an_adapter_on_the_start(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "steps=2", *ONE_RANK)
    assert sorted(done.record["actors"]) == ["policy[0]", "reward:length[0]", "rollout[0]"]
    # In step 1 the engine samples with the adapter merged in, and the trainer computes with it beside the weights.
    assert all(row["engine/logprob_gap"] < ENGINE_GAP for row in done.rows)
    assert abs(done.rows[0]["kl/mean_per_sequence"]) < 1e-5 < abs(done.rows[1]["kl/mean_per_sequence"])
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny-random"), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(done.folder / "policy"))
    moved = [name for name, param in adapted.named_parameters() if "lora_B" in name and param.abs().sum() > 0]
    assert moved
