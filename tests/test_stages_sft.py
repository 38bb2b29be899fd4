"""Fine-tuning runs, all but Ray: data, loop, checkpoints, a real kill, early ends, what is left on disk.

The command itself, with Ray Train and two ranks, is in test_sft_end_to_end.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from local_cluster import free_port
from safetensors.torch import load_file

from rayrl.config.load import load
from rayrl.config.sft import SFTConfig
from rayrl.data.examples import Examples
from rayrl.data.used import read_used
from rayrl.errors import RunError, UserError
from rayrl.models.builtin import resolve_model
from rayrl.stages.sft_data import DATA, DataCounts, held_out, sft_tokenizer, write_data
from rayrl.stages.sft_probe import Probe
from rayrl.stages.sft_worker import Trainer
from rayrl.tracking.rows import is_timing, read_rows

QUESTIONS = ["My head hurts.", "我头痛三天了。", "Is my fever high?", "Can I take two tablets?"]
ANSWERS = ["How long have you had the pain?", "请问有没有发热？", "Please see a doctor today.", "Rest and drink water."]


def write_rows(path: Path, count: int, start: int = 0) -> Path:
    rows = [
        {
            "id": f"row-{i}",
            "messages": [
                {"role": "user", "content": f"{QUESTIONS[i % 4]} Case {i}."},
                {"role": "assistant", "content": f"{ANSWERS[(i // 4) % 4]} {i}"},
            ],
        }
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(folder: Path, **keys: Any) -> SFTConfig:
    """Twelve optimizer steps or fewer on 60 short rows."""
    data = keys.pop("data", {})
    rows = write_rows(folder / "rows.jsonl", 60)
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "batch_size": 2,
        "max_steps": 6,
        "epochs": 4,
        "model": {"model": "tiny-random", "dtype": "fp32", "micro_batch_size": 1, "optimizer": {"lr": 2e-3}},
        "data": {
            "sources": [{"name": "rows", "path": str(rows)}],
            "max_tokens": 160,
            "validation_fraction": 0.2,
            **data,
        },
        "validation": {"every": 3},
        "probe": {"questions": None},
        "loggers": [],
        **keys,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load(SFTConfig, str(path))


def prepared(config: SFTConfig) -> DataCounts:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return write_data(config, sft_tokenizer(config, resolve_model("tiny-random")), folder)


def train(config: SFTConfig) -> dict[str, Any]:
    """Runs one rank in this process; what it says at the end."""
    folder = Path(config.output_dir)
    prepared(config)
    Trainer(config, folder, resolve_model("tiny-random"), 0, 1).run()
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


def learning_rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what measures the machine."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not is_timing(key)} for row in rows]


def test_data_is_split_by_what_is_said(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    counts = prepared(config)
    assert counts.rows == 60
    assert counts.train["rows"] + counts.validation["rows"] == 60
    assert 4 <= counts.validation["rows"] <= 20
    folder = Path(config.output_dir)
    assert len(Examples.load(folder / DATA / "train")) == counts.train["rows"]
    assert len(read_used(folder)) == counts.train["rows"]
    # More rows move none from one side to the other.
    more = config_of(tmp_path, output_dir=str(tmp_path / "more"))
    write_rows(tmp_path / "rows.jsonl", 90)
    again = prepared(more)
    assert read_used(folder).items() <= read_used(Path(more.output_dir)).items()
    assert again.train["rows"] > counts.train["rows"]


def test_the_held_out_share_follows_the_hash() -> None:
    assert held_out("0" * 64, 0.001)
    assert not held_out("f" * 64, 0.999)
    assert held_out("7fffffffffffff", 0.5) and not held_out("80000000000000", 0.5)


def test_rows_that_dont_fit_are_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path, data={"max_tokens": 80, "max_rejected_fraction": 0.1})
    path = tmp_path / "rows.jsonl"
    long = {"messages": [{"role": "user", "content": "x " * 200}, {"role": "assistant", "content": "y"}]}
    turns = [{"role": role, "content": "word " * 8} for role in ("user", "assistant") * 6]
    with path.open("a") as file:
        file.write(json.dumps(long) + "\n" + json.dumps({"messages": turns}) + "\n{broken\n")
    counts = prepared(config)
    assert counts.rows == 63
    assert sum(counts.dropped.values()) == 2
    assert any(reason.startswith("up to its first answer the conversation has N tokens") for reason in counts.dropped)
    assert (counts.conversations_cut, counts.turns_cut > 0) == (1, True)
    rejected = read_rows(Path(config.output_dir) / "rejected.jsonl")
    assert {row["line"] for row in rejected} == {61, 63}


def test_validation_rows_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    same = write_rows(tmp_path / "held.jsonl", 5, start=57)
    config = config_of(tmp_path, data={"validation": [{"name": "held", "path": str(same)}]})
    with pytest.raises(UserError, match=r"3 rows of data\.validation are also trained on"):
        prepared(config)
    assert not list(Path(config.output_dir).iterdir())


@pytest.mark.usefixtures("one_rank")
def test_a_run_learns_and_leaves_the_best_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    outcome = train(config)
    folder = Path(config.output_dir)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["step"] for row in rows if "validation/loss" in row] == [2, 5]
    losses = {row["step"] + 1: row["validation/loss"] for row in rows if "validation/loss" in row}
    assert outcome["best_step"] == min(losses, key=lambda step: losses[step])
    assert min(losses.values()) < outcome["start"]["validation/loss"]
    assert all(row["share/rows"] == pytest.approx(1.0) for row in rows)
    assert {path.name for path in (folder / "checkpoints").iterdir()} <= {"step-000003", "step-000006"}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template
    assert model.config._attn_implementation == "sdpa"
    assert "rayrl" not in (folder / "model" / "config.json").read_text()


@pytest.mark.usefixtures("one_rank")
def test_engines_are_told_the_templates_own_end_token(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content + '<|pad|>' }}{% endfor %}"
    model = {"model": "tiny-random", "dtype": "fp32", "chat_template": template}
    train(config_of(tmp_path, model=model, max_steps=1))
    saved = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [0, 2]


@pytest.mark.usefixtures("one_rank")
def test_no_better_loss_stops_and_the_best_is_kept(tmp_path: Path) -> None:
    """A rate so high that the loss only rises after the first validation."""
    model = {"model": "tiny-random", "dtype": "fp32", "optimizer": {"lr": 2e-3}}
    config = config_of(
        tmp_path,
        model=model,
        max_steps=12,
        validation={"every": 1, "patience": 2, "min_improvement": 5.0},
    )
    outcome = train(config)
    assert outcome["step"] == 3 and outcome["best_step"] == 1
    assert outcome["stopped"] == "no better validation loss in 2 validations"
    first = tmp_path / "first"
    first.mkdir()
    # The rate is constant, so one step alone leaves the same model.
    train(config_of(first, model=model, max_steps=1, validation={"every": 1}))
    ours, theirs = (load_file(path / "run" / "model" / "model.safetensors") for path in (tmp_path, first))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.usefixtures("one_rank")
def test_a_model_that_forgets_is_stopped(tmp_path: Path) -> None:
    """The probe asks what the random model happens to answer right; a violent rate loses it."""
    probe = tmp_path / "probe.jsonl"
    options = ["Paris", "Madrid", "Vienna", "a fish", "honey", "the Black Sea"]
    rows = [
        {"question": f"Question {i}?", "right": a, "wrong": [b]}
        for i, a in enumerate(options)
        for b in options
        if a != b
    ]
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(
        tmp_path,
        model={"model": "tiny-random", "dtype": "fp32", "optimizer": {"lr": 0.3, "max_grad_norm": 100}},
        validation={"every": 1},
        probe={"questions": str(probe), "max_fall": 0.01},
        guard={"factor": None},
    )
    # Every pair is asked both ways, so a model that ignores the question gets half of them right.
    folder = Path(config.output_dir)
    prepared(config)
    trainer = Trainer(config, folder, resolve_model("tiny-random"), 0, 1)
    trainer._state.start = {"probe/accuracy": 1.0, "validation/loss": 9.0}
    values = trainer._evaluate()
    assert values["probe/accuracy"] == pytest.approx(0.5, abs=0.2)
    trainer._judge(values)
    assert trainer._state.stopped is not None and "general ability fell from 100% to" in trainer._state.stopped
    with pytest.raises(RunError, match="no checkpoint is worth keeping: general ability fell"):
        trainer._export()


@pytest.mark.usefixtures("one_rank")
def test_a_run_that_forgets_ends_with_the_checkpoint_before_it(tmp_path: Path) -> None:
    """A rate that grows from step to step: the first validation is as the start's, a later one isn't."""
    probe = tmp_path / "probe.jsonl"
    options = [*ANSWERS, "Paris", "a fish", "honey", "the Black Sea"]
    pairs = [(a, b) for i, a in enumerate(options) for b in options[i + 1 :]]
    config = config_of(
        tmp_path,
        max_steps=None,
        model={
            "model": "tiny-random",
            "dtype": "fp32",
            "optimizer": {"lr": 0.02, "warmup_steps": 400, "max_grad_norm": 100},
        },
        validation={"every": 2},
        probe={"questions": str(probe), "max_fall": 0.2},
        guard={"factor": None},
    )

    def write(sides: list[bool]) -> None:
        rows = [
            dict(zip(("right", "wrong"), (a, [b]) if side else (b, [a]), strict=True))
            for (a, b), side in zip(pairs, sides, strict=True)
        ]
        probe.write_text("".join(json.dumps({"question": "What now?", **row}) + "\n" for row in rows))

    # What the model happens to prefer at its start is called right.
    write([True] * len(pairs))
    folder = Path(config.output_dir)
    prepared(config)
    trainer = Trainer(config, folder, resolve_model("tiny-random"), 0, 1)
    assert trainer._probe is not None
    sides = []
    for question in trainer._probe.questions:
        sides.append(Probe([question]).accuracy(trainer._learner) == 1.0)
    write(sides)
    outcome = train(config)
    rows = read_rows(folder / "metrics.jsonl")
    fallen = [row for row in rows if row.get("probe/accuracy", 1.0) < 0.8]
    assert outcome["start"]["probe/accuracy"] == 1.0
    assert outcome["stopped"].startswith("general ability fell from 100% to")
    assert len(fallen) == 1 and fallen[0]["step"] + 1 == outcome["step"] == len(rows) > outcome["best_step"] >= 2
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.usefixtures("one_rank")
def test_a_validation_that_isnt_finite_ends_the_run_with_the_best_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    losses = iter([9.0, 3.0, float("nan")])
    evaluate = Trainer._evaluate
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: evaluate(self) | {"validation/loss": next(losses)})
    outcome = train(config)
    assert outcome["stopped"] == "the validation loss isn't finite after step 6" and outcome["best_step"] == 3
    rows = read_rows(Path(config.output_dir) / "metrics.jsonl")
    assert len(rows) == 6 and "validation/loss" in rows[2] and "validation/loss" not in rows[5]
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: {"validation/loss": float("nan")})
    with pytest.raises(RunError, match=r"before training, validation/loss isn't finite"):
        train(config_of(tmp_path, output_dir=str(tmp_path / "other")))


@pytest.mark.usefixtures("one_rank")
def test_plain_text_is_an_objective(tmp_path: Path) -> None:
    text = tmp_path / "corpus.jsonl"
    text.write_text("".join(json.dumps({"text": f"{ANSWERS[i % 4]} Page {i}. " * 9}) + "\n" for i in range(30)))
    config = config_of(
        tmp_path,
        objective="pretrain",
        data={"sources": [{"name": "corpus", "path": str(text)}], "max_tokens": 64},
        probe={"questions": "general", "max_fall": 1},
    )
    counts = prepared(config)
    assert counts.train["corpus"] > 2 * 20  # documents are longer than a row
    assert counts.loss_tokens == counts.train_tokens - counts.train["corpus"]  # all but every first token
    outcome = train(config)
    rows = read_rows(Path(config.output_dir) / "metrics.jsonl")
    assert rows[-1]["validation/loss"] < outcome["start"]["validation/loss"]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", ["prefix", "encoder"])
def test_p_tuning_leaves_an_adapter(tmp_path: Path, kind: str) -> None:
    model = {
        "model": "tiny-random",
        "dtype": "fp32",
        "train": {"mode": "p_tuning", "prompt_kind": kind, "prompt_tokens": 4},
        "optimizer": {"lr": 0.05, "kind": "adamw"},
    }
    config = config_of(tmp_path, model=model, data={"packing": False})
    outcome = train(config)
    assert outcome["best_loss"] < outcome["start"]["validation/loss"]
    from peft import AutoPeftModelForCausalLM

    folder = Path(config.output_dir) / "model"
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert loaded.peft_config["default"].num_virtual_tokens == 4
    with pytest.raises(UserError, match="it holds a PEFT adapter"):
        resolve_model(str(folder))


def start(*configs: Path, world: int = 1) -> list[subprocess.Popen[bytes]]:
    """The ranks of one or more runs, one run after the other."""
    program, port = str(Path(__file__).parent / "sft_process.py"), str(free_port())
    paths = [str(path) for path in configs]
    return [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(world), port, *paths],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        _, error = process.communicate(timeout=180)
        assert process.returncode == 0, error.decode()[-3000:]


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """SIGKILL in the middle, after a checkpoint; LoRA with dropout, so that random numbers matter too."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
        model = {
            "model": "tiny-random",
            "dtype": "bf16",
            "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 2},
            "train": {"mode": "lora", "lora_dropout": 0.1},
        }
        config_of(folder, model=model, max_steps=24, validation={"every": 4}, checkpoint={"every": 2})
    whole = start(folders[0] / "config.yaml")
    (killed,) = start(folders[1] / "config.yaml")
    metrics = folders[1] / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while len(read_rows(metrics)) < 7:
        assert time.monotonic() < deadline and killed.poll() is None, killed.stderr and killed.stderr.read()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folders[1] / "run" / "model").exists()
    finish(whole + start(folders[1] / "config.yaml"))
    ours, theirs = (load_file(folder / "run" / "model" / "model.safetensors") for folder in folders)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert learning_rows(folders[0] / "run") == learning_rows(folders[1] / "run")


RANKS = {
    "zero0": {"zero_stage": 0},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "padded": {"zero_stage": 2, "micro_batch_size": 2},
    "lora": {"zero_stage": 2, "train": {"mode": "lora"}},
}


def test_two_uneven_ranks_train_as_one(tmp_path: Path) -> None:
    """Three rows a step over two ranks in micro-batches of one: counts differ, and one rank runs a row for nothing."""
    paths: dict[tuple[str, int], Path] = {}
    for name, keys in RANKS.items():
        for world in (1, 2):
            folder = tmp_path / f"{name}-{world}"
            folder.mkdir()
            model = {"model": "tiny-random", "dtype": "fp32", "micro_batch_size": 1, "optimizer": {"lr": 1e-3}, **keys}
            config_of(folder, batch_size=3, max_steps=3, model=model, data={"packing": name != "padded"})
            paths[name, world] = folder
    configs = [[paths[name, world] / "config.yaml" for name in RANKS] for world in (1, 2)]
    finish(start(*configs[0]) + start(*configs[1], world=2))
    for name in RANKS:
        one, two = (load_file(paths[name, world] / "run" / "model" / "model.safetensors") for world in (1, 2))
        for key, tensor in one.items():
            distance = (two[key].double() - tensor.double()).norm() / tensor.double().norm()
            assert distance <= 1e-5, (name, key, distance.item())
        ours, theirs = (learning_rows(paths[name, world] / "run") for world in (2, 1))
        for got, want in zip(ours, theirs, strict=True):
            assert got == pytest.approx(want, rel=1e-3, abs=1e-5), name
