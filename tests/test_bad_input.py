"""Whatever a user can get wrong: one sentence, a non-zero exit, nothing written, no Ray left.

All but the last two are found before Ray starts.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from run_cases import ONE_RANK, SMALL, leaves_nothing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.inputs import _answered
from rayrl import cli
from rayrl.config.load import dump, load
from rayrl.config.ppo import PPOConfig
from rayrl.data.chat import encode_prompt
from rayrl.errors import UserError
from rayrl.models.builtin import resolve_model, tiny_checkpoint
from rayrl.types import Message, Prompt, PromptRow

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Refused:
    """Runs `rayrl ppo tiny` with overrides that can't work; its sentence."""

    def run(*overrides: str, source: str = "tiny", folder: Path = tmp_path / "run") -> str:
        before = sorted(folder.rglob("*")) if folder.exists() else None
        capsys.readouterr()
        assert cli.main(["ppo", source, f"output_dir={folder}", *overrides]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("rayrl: ")
        assert "starting Ray" not in caplog.text
        assert not ray.is_initialized()
        assert (sorted(folder.rglob("*")) if folder.exists() else None) == before
        return lines[0]

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(resolve_model("tiny-random"), tmp_path / "model"))


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    content = {key: value for key, value in {**content, **values}.items() if value is not None}
    path.write_text(json.dumps(content), "utf-8")


def scorer(language_model: Path, folder: Path, num_labels: int = 1) -> Path:
    """A reward model of the language model's shape and tokenizer."""
    AutoModelForSequenceClassification.from_pretrained(language_model, num_labels=num_labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(folder)
    return folder


def reward(**keys: object) -> str:
    return "rewards=" + json.dumps([{"name": "mine", **keys}])


@pytest.mark.parametrize(
    ("override", "sentences"),
    [
        ("polcy.ranks=2", ["unknown key 'polcy'", "did you mean 'policy'?"]),
        ("policy.optimizer.learning_rate=1", ["policy.optimizer.learning_rate", "valid keys there: kind, lr,"]),
        ("rewards.lenght.weight=2", ["rewards.lenght", "did you mean 'length'?"]),
        ("seed=-1", ["seed must be greater than or equal to 0, got -1"]),
        ("steps=many", ["steps must be a valid integer", "got 'many'"]),
        ("policy.zero_stage=4", ["policy.zero_stage must be 0, 1, 2 or 3", "got 4"]),
        ("prompts_per_step=3", ["prompts_per_step: 3 isn't a multiple of policy.ranks (2)"]),
        ("logging.text_to=[wandb]", ["text_to: ['wandb'] isn't among logging.loggers ['tensorboard']"]),
        ("cluster.address=ray://head:10001", ["ray://head:10001", "ray job submit --address"]),
    ],
)
def test_config(refused: Refused, override: str, sentences: list[str]) -> None:
    message = refused(override)
    assert all(sentence in message for sentence in sentences), message


def test_missing_files(refused: Refused, tmp_path: Path) -> None:
    assert "no file and no preset is called 'tinny'; did you mean the preset 'tiny'?" in refused(source="tinny")
    gone = tmp_path / "gone"
    assert f"No checkpoint at {gone}: the folder doesn't exist" in refused(f"policy.model={gone}")
    assert f"No prompts at {gone}.jsonl: the file doesn't exist" in refused(f"data.prompts={gone}.jsonl")
    assert f"No prompts at {gone}.jsonl" in refused(f"data.heldout={gone}.jsonl")
    message = refused(reward(kind="model", model=str(gone)))
    assert f"No checkpoint at {gone}" in message


def test_prompts(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.touch()
    assert f"{path} holds no prompts" in refused(f"data.prompts={path}")
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": "pain " * 50}]} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    message = refused(f"data.prompts={path}", "rollout.max_prompt_tokens=16")
    assert f"{path}: 5 of 5 rows were rejected, none is usable" in message
    assert "tokens, more than rollout.max_prompt_tokens=16" in message


def test_window(refused: Refused) -> None:
    message = refused("rollout.max_prompt_tokens=2000", "rollout.max_new_tokens=100")
    assert "rollout.max_prompt_tokens + rollout.max_new_tokens is 2100, more than the 2048 positions" in message


def test_tokenizer_without_chat_template(refused: Refused, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    message = refused(f"policy.model={model}")
    assert f"The tokenizer of {model} has no chat template: set policy.chat_template" in message


def test_tokenizer_without_pad_token(refused: Refused, model: Path) -> None:
    edit_json(model / "tokenizer_config.json", pad_token=None)
    message = refused(f"policy.model={model}")
    assert f"The tokenizer of {model} has no pad token: set pad_token in its tokenizer_config.json" in message


def test_reward_model_with_another_vocabulary(refused: Refused, tmp_path: Path) -> None:
    other = scorer(tiny_checkpoint(tmp_path, vocab_size=300), tmp_path / "scorer")
    message = refused(reward(kind="model", model=str(other)))
    assert "reward 'mine' and the policy have different vocabularies (300 and 512 tokens" in message


@pytest.mark.parametrize(
    ("num_labels", "problem"), [(None, "it has no score head"), (2, "its score head has 2 outputs")]
)
def test_reward_model_that_cannot_score(
    refused: Refused, model: Path, tmp_path: Path, num_labels: int | None, problem: str
) -> None:
    path = model if num_labels is None else scorer(model, tmp_path / "scorer", num_labels)
    message = refused(reward(kind="model", model=str(path)))
    assert f"reward 'mine': {path} can't score, {problem}: give a sequence-classification checkpoint" in message
    assert f"critic.model: {path} can't score" in refused(f"critic.model={path}")


def test_reference_of_another_shape_or_with_other_weights(refused: Refused, tmp_path: Path) -> None:
    deeper = tiny_checkpoint(tmp_path, layers=3)
    message = refused(f"reference.model={deeper}")
    assert f"policy and reference differ in num_hidden_layers: 2 in {resolve_model('tiny-random')}, 3 in" in message
    other = tiny_checkpoint(tmp_path, seed=1)
    message = refused(f"reference.model={other}")
    assert f"reference.model {other} holds other weights than policy.model" in message


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_more_blocks_than_the_model_has(refused: Refused, role: str) -> None:
    message = refused(f"{role}.train.mode=last_n", f"{role}.train.num_layers=2")
    assert f"{role}.train.num_layers is 2, but " in message
    assert f"has 2 blocks: use {role}.train.mode=full" in message


def test_more_than_the_machine_holds(refused: Refused) -> None:
    message = refused("policy.ranks=64", "critic.ranks=64", "prompts_per_step=128", "policy.cpus_per_rank=8")
    assert "the roles don't fit the cluster" in message
    assert "lower the CPUs a rank (fractions work) or the ranks" in message
    message = refused("policy.gpus_per_rank=8")
    assert "16 GPUs are asked" in message
    assert "lower the ranks, or let roles share GPUs" in message


def test_vllm_is_missing(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    message = refused()
    assert "vLLM isn't installed: install rayrl[cpu] or rayrl[gpu], or set rollout.backend=hf" in message


def test_logger_is_missing(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused("logging.loggers=[tensorboard, wandb]")
    assert "logging.loggers names wandb, but wandb isn't installed" in message


REWARD_MODULE = """\
number = 3
def no_options(prompt, response, reference, fields): return 0.0
"""


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"kind": "function", "path": "no_such_module.score"}, "there is no module 'no_such_module'"),
        ({"kind": "function", "path": "bad_rewards.scor"}, "module 'bad_rewards' has no 'scor'"),
        ({"kind": "function", "path": "bad_rewards.number"}, "'bad_rewards.number' is a int, not a function"),
        ({"kind": "function", "path": "bad_rewards.no_options", "options": {"low": 1}}, "unexpected keyword"),
        ({"kind": "function", "path": "broken_rewards.score"}, "importing 'broken_rewards' failed (SyntaxError"),
        ({"kind": "rule", "rule": "repetitions"}, "unknown reward rule 'repetitions'; did you mean 'repetition'?"),
        ({"kind": "rule", "rule": "length_window", "options": {"min": 2}}, "has no option 'min'"),
        ({"kind": "rule", "rule": "repetition", "weight": 0}, "every weight is 0"),
        ({"kind": "rule"}, "reward 'mine' of kind 'rule' needs 'rule'"),
    ],
)
def test_reward_sources(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], sentence: str
) -> None:
    (tmp_path / "bad_rewards.py").write_text(REWARD_MODULE, "utf-8")
    (tmp_path / "broken_rewards.py").write_text("def score(:\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(reward(**entry))
    assert sentence in message, message
    assert "mine" in message or "rewards:" in message


def test_rows_that_lack_what_a_rule_needs(refused: Refused, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"My knee hurts, {i}."}]} for i in range(40)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asks = {"kind": "rule", "rule": "clarifying_question"}
    message = refused(reward(**asks), f"data.prompts={file}")
    assert "reward 'mine' can't score " in message
    assert "the rule clarifying_question needs fields.missing_info" in message
    message = refused(reward(kind="rule", rule="reference_overlap"), f"data.prompts={file}")
    assert "the rule reference_overlap needs a reference answer" in message


def test_output_dir(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept", "utf-8")
    assert f"output_dir {file} can't be made: {file} is a file" in refused(folder=file)
    assert f"{file} is a file; name a folder" in refused(folder=file / "inside")
    assert file.read_text("utf-8") == "kept"

    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    assert f"output_dir {full} holds files but no run" in refused(folder=full)

    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "config.yaml").write_text(dump(load(PPOConfig, "tiny", [f"output_dir={earlier}"])), "utf-8")
    message = refused("seed=1", "policy.optimizer.lr=1", folder=earlier)
    assert f"{earlier} holds a run with another seed, policy.optimizer.lr: resume with the same settings" in message


@pytest.mark.parametrize(
    ("opening", "answer"), [("answer: ", "assistant: {{ m.content }}"), ("assistant: ", "assistant: ")]
)
def test_a_template_that_writes_an_answer_unlike_the_prompt(tmp_path: Path, opening: str, answer: str) -> None:
    """A prompt that the answered conversation doesn't begin with; an answer of no tokens."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% else %}{{ m.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny-random"))
    tokenizer.chat_template = template
    row = PromptRow("row-7", [Message(role="user", content="My knee hurts.")])
    prompt = encode_prompt(tokenizer, row, 64)
    assert isinstance(prompt, Prompt)
    with pytest.raises(UserError, match=r"^algorithm\.ptx: row 'row-7' .* policy\.chat_template"):
        _answered(tokenizer, prompt, "Since when?", (2,), load(PPOConfig, "tiny", []))


def test_a_supervised_term_that_the_template_cannot_write(refused: Refused) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}answer: {% endif %}"
    )
    message = refused(f"policy.chat_template={json.dumps(template)}", "algorithm.ptx.data=consultations-en")
    assert "algorithm.ptx: row" in message and "policy.chat_template" in message


FLAKY_REWARD = """\
calls = 0
def score(prompt, response, reference, fields):
    global calls
    calls += 1
    return float("nan") if calls == 11 else 1.0
"""


def failed_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> str:
    """A run that ends in its middle; its sentence. Its folder must be one that can be read and resumed."""
    with leaves_nothing() as marks:
        for name, value in marks.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert (
            cli.main(["ppo", "tiny", f"output_dir={folder}", *SMALL, *ONE_RANK, "checkpoint.every=1", *overrides]) == 1
        )
        assert not ray.is_initialized()
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rayrl: ")]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(math.isfinite(value) for row in steps for value in row.values())
    published = sorted(path.name for path in folder.glob("checkpoints/*"))
    assert published == [f"step-{row['step'] + 1:06d}" for row in steps]
    assert not (folder / "summary.json").exists()
    return message


def test_nan_score_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky_reward.py").write_text(FLAKY_REWARD, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    entry = {"name": "flaky", "kind": "function", "path": "flaky_reward.score", "cpus_per_worker": 0.05}
    # Calls 1 to 4 are the evaluation before training, 5 to 8 step 0, and 11 is the third sample of step 1.
    message = failed_run(tmp_path / "run", capsys, monkeypatch, f"rewards={json.dumps([entry])}")
    assert "step 1: reward 'flaky' failed on 1 of 4 samples, first on sample 2" in message
    assert "the score is nan" in message
    assert len((tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()) == 1


def test_nan_loss_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = failed_run(tmp_path / "run", capsys, monkeypatch, "policy.optimizer.lr=1.0e+30")
    assert "step 0: the policy" in message
    assert "is nan" in message
    assert (tmp_path / "run/metrics.jsonl").read_text("utf-8") == ""
