"""Time TRL 0.24's PPOTrainer on the work that bench_ppo.py times with rayrl: one JSON line at the end.

    .venv/bin/python scripts/bench_peer_trl.py --train full            # everything trains
    .venv/bin/python scripts/bench_peer_trl.py --train last2           # last two blocks and final norm
    .venv/bin/python scripts/bench_peer_trl.py --train last2 --prompts 64

The work: SmolLM2-135M-Instruct as policy, reference and start of the value model; the first `--prompts` rows of
`consultations-en`, in the same tokens; exactly 64 new tokens each at temperature 1 (no end token stops an answer); a
reward that costs nothing; 4 PPO epochs of 1 minibatch. `last2` trains the last two blocks and the final norm of the
policy (its head is tied, so it stays frozen) and of the value model, and the value head. What an iteration takes is
measured from the end of one to the end of the next; the first, which warms up, isn't in the median.

TRL's settings are those that were fastest in trials (CPU seconds of the second iteration, one thread, so that other
work on the machine counts for little):

    last2, 16 prompts   everything bf16, all 16 sequences a pass                 33.6   <- kept
                        the same with eager attention                            33.6
                        8 sequences a training pass                              34.9
    full, 16 prompts    everything bf16, all 16 sequences a pass                 63.4
                        the same with eager attention (two threads: 50 s, not 60)       <- kept
                        8 sequences a training pass                              64.4
                        float32 weights under bf16 autocast                     104.8
    last2, 64 prompts   all 64 sequences a pass, in generation too              127.2   <- kept
                        16 sequences a pass, in generation too                  153.4

No gradient checkpointing, fused AdamW, no cache in training passes. Let nothing else run beside a measurement: on a
busy machine two threads, waiting for each other at every barrier, took 180 s for what one thread does in 35 s.

TRL runs in a virtual environment of its own, `.bench/trl` in the checkout, made on the first run (PyPI only). This
script itself runs in the project's environment, which makes the checkpoint and the prompts' tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench"
PINS = ("torch==2.13.0", "transformers==4.57.6", "trl==0.24.0", "accelerate==1.15.0", "datasets==5.0.1")
NEW_TOKENS = 64
PPO_EPOCHS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=("full", "last2"), default="full")
    parser.add_argument("--prompts", type=int, default=16, help="prompts an iteration")
    parser.add_argument("--prompts-from", default="consultations-en", help="a built-in set or a file of prompt rows")
    parser.add_argument("--iterations", type=int, default=4, help="the first isn't in the median")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "autocast", "fp32"), default="bf16")
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="default: eager for `full`, else sdpa")
    parser.add_argument("--micro-batch", type=int, help="sequences a training pass; default: all")
    parser.add_argument("--rollout-batch", type=int, help="sequences generated and scored at one time; default: all")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # this script again, inside TRL's environment
    args = parser.parse_args()
    args.attention = args.attention or ("eager" if args.train == "full" else "sdpa")
    if args.job:
        print(json.dumps(time_trl(json.loads(Path(args.job).read_text("utf-8")))), flush=True)
        return
    job = make_job(args)
    python = make_environment()
    path = FOLDER / f"trl-job-{os.getpid()}.json"
    path.write_text(json.dumps(job), "utf-8")
    threads = str(args.threads)
    alone = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env = {**os.environ, **alone, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    env.pop("PYTHONPATH", None)
    try:
        subprocess.run([python, __file__, "--job", str(path)], check=True, env=env)
    finally:
        path.unlink()


def make_environment() -> Path:
    """Python of TRL's own environment, installed on the first call; a changed pin makes it anew."""
    folder = FOLDER / "trl"
    ready = folder / "pins.json"
    python = folder / "bin" / "python"
    if not ready.exists() or json.loads(ready.read_text()) != list(PINS):
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / ".gitignore").write_text("*\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True, stdout=sys.stderr)
        ready.write_text(json.dumps(PINS))
    return python


def make_job(args: argparse.Namespace) -> dict[str, Any]:
    """What TRL gets: the checkpoint's folder, the prompts in tokens, the settings."""
    from rayrl.data.chat import encode_prompts, load_tokenizer
    from rayrl.data.prompts import read_prompts
    from rayrl.models.builtin import resolve_model

    model = resolve_model("smollm2-135m-instruct")
    prompts, _ = encode_prompts(load_tokenizer(model), read_prompts(args.prompts_from), 512)
    if len(prompts) < args.prompts:
        raise SystemExit(f"{args.prompts_from} has {len(prompts)} usable prompts, fewer than --prompts {args.prompts}")
    return {
        "model": model,
        "prompts": [prompt.token_ids_P.tolist() for prompt in prompts[: args.prompts]],
        "train": args.train,
        "iterations": args.iterations,
        "threads": args.threads,
        "precision": args.precision,
        "attention": args.attention,
        "micro_batch": args.micro_batch or args.prompts,
        "rollout_batch": args.rollout_batch or args.prompts,
    }


def time_trl(job: dict[str, Any]) -> dict[str, Any]:
    """Train for job["iterations"] iterations and say how long each took."""
    import torch
    import transformers
    import trl
    from transformers import TrainerCallback

    torch.set_num_threads(job["threads"])
    trainer = make_trainer(job)
    ends: list[float] = []
    cpu_ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())
            cpu_ends.append(time.process_time())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.on_train_begin()
            print(f"iteration {len(ends) - 1}: {ends[-1] - ends[-2]:.2f} s", file=sys.stderr, flush=True)

    trainer.add_callback(Clock())
    trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    cpu_seconds = [after - before for before, after in itertools.pairwise(cpu_ends)]
    median = statistics.median(seconds[1:] or seconds)
    count = len(job["prompts"])
    return {
        "system": "trl PPOTrainer",
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, torch)},
        "train": job["train"],
        "dtype": job["precision"],
        "attention": job["attention"],
        "threads": torch.get_num_threads(),
        "prompts": count,
        "prompt_tokens": sum(map(len, job["prompts"])),
        "new_tokens": count * NEW_TOKENS,
        "ppo_epochs": PPO_EPOCHS,
        "minibatches": 1,
        "micro_batch": job["micro_batch"],
        "rollout_batch": job["rollout_batch"],
        "trainable_policy": count_trainable(trainer.policy_model),
        "trainable_value": count_trainable(trainer.value_model),
        "seconds": [round(value, 3) for value in seconds],
        "cpu_seconds": [round(value, 3) for value in cpu_seconds],
        "median_s": round(median, 3),
        "samples_per_s": round(count / median, 4),
    }


def make_trainer(job: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    # A pad token that is never sampled: TRL finds padding by its id, and SmolLM2 pads with its end token.
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    settings = {
        "dtype": torch.bfloat16 if job["precision"] == "bf16" else torch.float32,
        "attn_implementation": job["attention"],
    }
    policy = AutoModelForCausalLM.from_pretrained(job["model"], **settings)
    reference = AutoModelForCausalLM.from_pretrained(job["model"], **settings)
    value = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, **settings)
    for model in (policy, reference, value):
        model.config.use_cache = False  # training passes would build a cache for nothing; generation asks for its own
    if job["train"] == "last2":
        freeze_all_but_last2(policy, policy.model)
        freeze_all_but_last2(value, value.model, value.score)
    rows = Dataset.from_dict({"input_ids": job["prompts"]})
    count = len(job["prompts"])
    config = PPOConfig(
        output_dir=str(FOLDER / "trl-out"),
        total_episodes=count * job["iterations"],
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=count // job["micro_batch"],
        local_rollout_forward_batch_size=job["rollout_batch"],
        num_ppo_epochs=PPO_EPOCHS,
        num_mini_batches=1,
        response_length=NEW_TOKENS,
        stop_token=None,
        missing_eos_penalty=None,
        temperature=1.0,
        learning_rate=1e-6,
        bf16=job["precision"] == "autocast",
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return PPOTrainer(config, tokenizer, policy, reference, TrivialReward(), rows, value, eval_dataset=rows)


def freeze_all_but_last2(model: Any, trunk: Any, *others: Any) -> None:
    model.requires_grad_(False)
    for part in (*trunk.layers[-2:], trunk.norm, *others):
        part.requires_grad_(True)


def count_trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def TrivialReward() -> Any:
    """A reward in the form that TRL asks for (a trunk and a scoring layer): each answer's last token id, scaled."""
    import torch

    class Trunk(torch.nn.Module):
        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            hidden = (input_ids.float() / 49152).unsqueeze(-1)
            return type("Output", (), {"hidden_states": (hidden,)})

    class Reward(torch.nn.Module):
        base_model_prefix = "trunk"

        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.score = Trunk(), torch.nn.Identity()

    return Reward()


if __name__ == "__main__":
    main()
