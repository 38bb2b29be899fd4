"""Time supervised fine-tuning, rayrl's and TRL's SFTTrainer with packing on the same tokens: one JSON line each.

    .venv/bin/python scripts/bench_sft.py                         # rayrl alone
    .venv/bin/python scripts/bench_sft.py --against-trl           # TRL, rayrl, TRL, rayrl, and the ratio of medians
    .venv/bin/python scripts/bench_sft.py --against-trl --loss all

The work: SmolLM2-135M-Instruct in bf16, everything trained, AdamW; the project's own English conversations
(`sft-distilled-en`, `sft-doctor-en`), packed to 1024 tokens, two rows an optimizer step. `--loss assistant` (default)
counts the assistant's turns alone, in both; `--loss all` every token. A step's time holds the making of its batch, both
passes and the update; tokens are real ones, never padding. The first two steps, which warm up, aren't in the medians.

rayrl runs as the command `rayrl sft` does: a rank of Ray Train with DeepSpeed, metrics to disk, one rank with all
threads. TRL runs in its own environment, the one of scripts/bench_peer_trl.py, and gets the tokens and masks ready
made; its settings are its fastest: weights in bf16, no gradient checkpointing, fused AdamW, the `bfd` packing, and
SDPA attention (its varlen attention needs flash-attn, which has no CPU build). Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench_peer_trl import FOLDER, make_environment

SOURCES = ("sft-distilled-en", "sft-doctor-en")
ROW_TOKENS = 1024
ROWS = 2
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="the first two aren't in the medians")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loss", choices=("assistant", "all"), default="assistant")
    parser.add_argument("--against-trl", action="store_true", help="also run TRL, in turn, and print the ratio")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, with --against-trl")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # this script again, inside TRL's environment
    args = parser.parse_args()
    if args.job:
        print(json.dumps(time_trl(json.loads(Path(args.job).read_text("utf-8")))), flush=True)
        return
    if not args.against_trl:
        print(json.dumps(time_rayrl(args)))
        return
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(args.rounds):
        for run, speeds in ((run_trl, theirs), (time_rayrl, ours)):
            result = run(args)
            print(json.dumps(result), flush=True)
            speeds += result["tokens_per_s"][WARM_UP:]
    a, b = statistics.median(theirs), statistics.median(ours)
    result = {"loss": args.loss, "trl_tokens_per_s": round(a, 1), "rayrl_tokens_per_s": round(b, 1)}
    print(json.dumps({**result, "rayrl_times_as_fast": round(b / a, 2)}))


def time_rayrl(args: argparse.Namespace) -> dict[str, Any]:
    """One run of `rayrl sft` in a temporary folder; its metrics."""
    from rayrl.tracking.rows import read_rows

    with tempfile.TemporaryDirectory(prefix="rayrl-bench-") as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(yaml.safe_dump(make_config(args, Path(folder))))
        subprocess.run([sys.executable, "-m", "rayrl.cli", "sft", path], check=True, stdout=sys.stderr)
        rows = read_rows(Path(folder) / "run" / "metrics.jsonl")
    return summary("rayrl sft", args.loss, [r["tokens"] for r in rows], [r["time/step"] for r in rows])


def make_config(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"max_tokens": ROW_TOKENS, "validation_fraction": 0}
    if args.loss == "all":
        rows = write_documents(folder / "documents.jsonl")
        data["sources"] = [{"name": "documents", "path": str(rows)}]
    else:
        data["sources"] = [{"name": name, "path": name} for name in SOURCES]
    return {
        "output_dir": str(folder / "run"),
        "objective": "pretrain" if args.loss == "all" else "chat",
        "max_steps": args.steps,
        "epochs": 4,
        "batch_size": ROWS,
        "model": {
            "model": "smollm2-135m-instruct",
            "dtype": "bf16",
            "micro_batch_size": ROWS,
            "optimizer": {"lr": 1e-5},
            "cpus_per_rank": 1,
            "threads": args.threads,
        },
        "data": data,
        "probe": {"questions": None},
        "loggers": [],
    }


def write_documents(path: Path) -> Path:
    """The conversations as plain text."""
    from rayrl.config.sources import SourceConfig
    from rayrl.data.readers import read_conversations

    with path.open("w", encoding="utf-8") as file:
        for name in SOURCES:
            for row in read_conversations(SourceConfig(name=name, path=name)).rows:
                text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in row.messages)
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL in its own environment, on the examples that rayrl would train on."""
    from rayrl.config.load import load
    from rayrl.config.sft import SFTConfig
    from rayrl.data.examples import Examples
    from rayrl.models.builtin import resolve_model
    from rayrl.stages.sft_data import DATA, sft_tokenizer, write_data

    python = make_environment()
    model = resolve_model("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory(prefix="rayrl-bench-") as name:
        folder = Path(name)
        (folder / "bench.yaml").write_text(yaml.safe_dump(make_config(args, folder)))
        config = load(SFTConfig, str(folder / "bench.yaml"))
        write_data(config, sft_tokenizer(config, model), folder)
        data = Examples.load(folder / DATA / "train")
        examples = [data.example(i) for i in range(len(data))]
        job = {
            "model": model,
            "steps": args.steps,
            "threads": args.threads,
            "loss": args.loss,
            "rows": [(np.asarray(ids).tolist(), np.asarray(mask).astype(int).tolist()) for ids, mask in examples],
        }
        (folder / "job.json").write_text(json.dumps(job))
        alone = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env = {**os.environ, **alone, "OMP_NUM_THREADS": str(args.threads)}
        env.pop("PYTHONPATH", None)
        command = [python, __file__, "--job", folder / "job.json"]
        out = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True).stdout
    line: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return line


def time_trl(job: dict[str, Any]) -> dict[str, Any]:
    """Train for job["steps"] steps and say how long each took."""
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(job["threads"])
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, attn_implementation="sdpa")
    columns = {"input_ids": [ids for ids, _ in job["rows"]]}
    if job["loss"] == "assistant":
        columns["completion_mask"] = [mask for _, mask in job["rows"]]
    config = trl.SFTConfig(
        output_dir=str(FOLDER / "trl-out"),
        max_steps=job["steps"],
        per_device_train_batch_size=ROWS,
        max_length=ROW_TOKENS,
        packing=True,
        completion_only_loss=job["loss"] == "assistant",
        learning_rate=1e-5,
        bf16=False,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
    )
    trainer = trl.SFTTrainer(model, config, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    ends: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.on_train_begin()
            print(f"step {len(ends) - 1}: {ends[-1] - ends[-2]:.2f} s", file=sys.stderr, flush=True)

    collate = trainer.data_collator

    def counting(rows: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    trainer.data_collator = counting
    trainer.add_callback(Clock())
    trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return summary("trl SFTTrainer " + trl.__version__, job["loss"], tokens[: len(seconds)], seconds)


def summary(system: str, loss: str, tokens: list[int], seconds: list[float]) -> dict[str, Any]:
    speeds = [count / second for count, second in zip(tokens, seconds, strict=True)]
    return {
        "system": system,
        "loss": loss,
        "tokens": tokens,
        "seconds": [round(second, 3) for second in seconds],
        "tokens_per_s": [round(speed, 1) for speed in speeds],
        "median_tokens_per_s": round(statistics.median(speeds[WARM_UP:] or speeds), 1),
    }


if __name__ == "__main__":
    main()
