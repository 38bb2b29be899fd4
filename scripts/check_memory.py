"""Compare the planner's memory with what training really takes: a table of measured against estimated.

    .venv/bin/python scripts/check_memory.py             # SmolLM2-135M on this machine's CPUs: PPO steps of the policy
    .venv/bin/python scripts/check_memory.py --quick     # one case, a quarter of a minute
    python scripts/check_memory.py --cuda                # one GPU: needs torch and transformers, nothing else

On CPUs each case is a process of its own: resident memory after the imports (and after a step of a two-layer model,
which loads what is imported late), then the highest of two optimizer steps of rayrl's own policy learner. On a GPU a
Llama of random weights trains in bf16 as DeepSpeed's optimizer does it at stage 0 (float32 copies, float32 gradients in
the step), and `torch.cuda.max_memory_allocated` is read; tokens a second and the share of the device's peak are
printed beside it. Ends with 1 where an estimate is off by more than 15%.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rayrl.planning.memory import Training, trainer_memory  # noqa: E402
from rayrl.planning.serving import scorer_memory  # noqa: E402
from rayrl.planning.shapes import KNOWN, ModelShape  # noqa: E402

TOLERANCE = 0.15
MIB = 2**20
MODEL = "smollm2-135m-instruct"
QUICK = {"dtype": "bf16", "mode": "full", "zero_stage": 0, "micro_batch": 8, "sequences": 8, "tokens": [64, 64]}
CPU_CASES: list[dict[str, Any]] = [
    QUICK,
    {**QUICK, "sequences": 16},
    {**QUICK, "gradient_checkpointing": True},
    {**QUICK, "dtype": "fp32", "sequences": 16},
    {**QUICK, "zero_stage": 1, "sequences": 16},
    {**QUICK, "zero_stage": 2, "sequences": 16},
    {**QUICK, "zero_stage": 3, "sequences": 16},
    {**QUICK, "mode": "lora", "sequences": 16},
    {**QUICK, "mode": "last_n", "micro_batch": 16, "sequences": 32},
    {**QUICK, "micro_batch": 4, "sequences": 4, "tokens": [128, 384]},
    {**QUICK, "mode": "reference", "micro_batch": 32, "sequences": 32, "tokens": [128, 128]},
    {**QUICK, "mode": "reference", "dtype": "fp32", "micro_batch": 16, "sequences": 16, "tokens": [256, 256]},
]


def training_of(case: dict[str, Any], gpu: bool = False) -> Training:
    """A case as the planner takes it."""
    return Training(
        role="policy",
        dtype=case["dtype"],
        gpu=gpu,
        mode=case["mode"],
        zero_stage=case["zero_stage"],
        gradient_checkpointing=case.get("gradient_checkpointing", False),
        micro_batch=case["micro_batch"],
        accumulates=case["sequences"] > case["micro_batch"],
        sequences=case["sequences"],
        prompt_tokens=case["tokens"][0],
        answer_tokens=case["tokens"][1],
    )


def name_of(case: dict[str, Any]) -> str:
    """A case for the table."""
    rows = f"{case['sequences']} x {sum(case['tokens'])} by {case['micro_batch']}"
    if case["mode"] == "reference":
        return f"frozen reference {case['dtype']}, {rows}"
    recomputes = ", checkpointing" if case.get("gradient_checkpointing") else ""
    return f"{case['mode']} {case['dtype']} ZeRO {case['zero_stage']}, {rows}{recomputes}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="on a GPU, with torch and transformers alone")
    parser.add_argument("--quick", action="store_true", help="the first case only")
    parser.add_argument("--json", action="store_true", help="print JSON lines in place of the table")
    parser.add_argument("--one", metavar="JSON", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps({"measured": measure_cpu(json.loads(args.one))}))
        return 0
    rows = list(cuda_rows() if args.cuda else cpu_rows(CPU_CASES[:1] if args.quick else CPU_CASES))
    off = [row for row in rows if abs(row["estimated"] / row["measured"] - 1) > TOLERANCE]
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        print("\n".join(table(rows)))
    return 1 if off else 0


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with the same columns, as text."""
    titles = ["case", "measured MiB", "estimated MiB", "estimate / measured", *(key for key in rows[0] if key in EXTRA)]
    cells = [titles]
    for row in rows:
        share = row["estimated"] / row["measured"]
        cells.append([row["case"], f"{row['measured'] / MIB:.0f}", f"{row['estimated'] / MIB:.0f}", f"{share:.3f}"])
        cells[-1] += [EXTRA[key].format(row[key]) for key in row if key in EXTRA]
    widths = [max(len(line[i]) for line in cells) for i in range(len(titles))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


EXTRA = {"tokens_per_s": "{:.0f}", "mfu": "{:.3f}", "with_recomputing": "{:.3f}", "context MiB": "{:.0f}"}


def cpu_rows(cases: list[dict[str, Any]]) -> Any:
    """Every case in a process of its own."""
    for case in cases:
        command = [sys.executable, __file__, "--one", json.dumps(case)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout.strip().splitlines()[-1])["measured"]
        estimated = estimate_cpu(case)
        yield {"case": name_of(case), "measured": measured, "estimated": estimated}


def estimate_cpu(case: dict[str, Any]) -> int:
    """What the planner says of a case."""
    shape = KNOWN["smollm2-135m"]
    if case["mode"] == "reference":
        length = sum(case["tokens"])
        return scorer_memory(shape, case["dtype"], False, case["micro_batch"], length, 0, logits=True).peak
    return trainer_memory(shape, training_of(case), framework=0).peak


def resident() -> dict[str, int]:
    """Bytes of this process: resident now, and at the most so far."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")}


def measure_cpu(case: dict[str, Any]) -> int:
    """Peak less after-import bytes of two optimizer steps, in this process."""
    import torch

    from rayrl.models.deepspeed_engine import init_distributed
    from rayrl.models.rendezvous import reserve

    torch.set_num_threads(2)
    init_distributed(0, 1, "127.0.0.1", reserve("127.0.0.1"), timeout_s=60)
    # last_n needs more blocks than it trains.
    late = {**case, "mode": "full" if case["mode"] == "last_n" else case["mode"], "micro_batch": 2, "sequences": 4}
    work = score if case["mode"] == "reference" else train_ppo
    work({**late, "tokens": [8, 8]}, "tiny-random")
    gc.collect()
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far starts again from here
    work(case, MODEL)
    return resident()["VmHWM"] - before


def made_up(case: dict[str, Any], vocab: int) -> list[Any]:
    """Rollouts of exactly a case's lengths."""
    import numpy as np

    from rayrl.types import Prompt, PromptRow, Rollout

    rows, (prompt, answer) = case["sequences"], case["tokens"]
    ids = np.random.default_rng(0).integers(3, vocab, (rows, prompt + answer))
    asked = [Prompt(PromptRow(str(i), [{"role": "user", "content": "?"}]), row[:prompt]) for i, row in enumerate(ids)]
    sampled = np.zeros(answer, np.float32)
    return [Rollout(p, 0, row[prompt:], sampled, "", False, 0) for p, row in zip(asked, ids, strict=True)]


def score(case: dict[str, Any], model: str) -> None:
    """A reference worker's log-probabilities of made-up rollouts, twice."""
    import torch

    from rayrl.learners.shard import Shard
    from rayrl.models.builtin import resolve_model
    from rayrl.models.scorer import ReferenceScorer

    scorer = ReferenceScorer(resolve_model(model), case["dtype"], 1.0, 0)
    batches = -(-case["sequences"] // case["micro_batch"])
    shard = Shard(made_up(case, 500), batches, 0, torch.device("cpu"))
    with torch.inference_mode():
        for batch in shard.batches * 2:
            scorer.module(batch.ids_BL, batch, scorer.temperature)


def train_ppo(case: dict[str, Any], model: str) -> None:
    """A policy rank's step on made-up rollouts of exactly these lengths: scoring and two optimizer steps."""
    import numpy as np

    from rayrl.config.ppo import AlgorithmConfig, PolicyConfig
    from rayrl.learners.policy import PolicyLearner
    from rayrl.models.builtin import resolve_model

    config = PolicyConfig.model_validate(
        {
            "model": resolve_model(model),
            "dtype": case["dtype"],
            "micro_batch_size": case["micro_batch"],
            "zero_stage": case["zero_stage"],
            "gradient_checkpointing": case.get("gradient_checkpointing", False),
            "train": {"mode": case["mode"]},
            "optimizer": {"lr": 1e-5},
        }
    )
    algorithm = AlgorithmConfig.model_validate({"epochs": 2})
    rows, answer = case["sequences"], case["tokens"][1]
    learner = PolicyLearner(config, algorithm, 1.0, 0, rows, 1, 0, answer)
    rollouts = made_up(case, learner.parts.model.config.vocab_size)
    view = learner.prepare(rollouts)
    values = [np.zeros(answer, np.float32)] * rows
    learner.update(0, [0.0] * rows, 0.1, view.ref_logprobs or view.logprobs, values)


def cuda_rows() -> Any:
    """A random Llama in bf16 on one GPU, with and without gradient checkpointing."""
    import torch

    from rayrl.planning.devices import gpu_of_model
    from rayrl.planning.time import Work, update_flops

    name = torch.cuda.get_device_name(0)
    device = gpu_of_model(name)
    free, total = torch.cuda.mem_get_info()
    context = total - free
    known = "not in devices.py" if device is None else f"{device.name}: {device.memory / 2**30:.1f} GiB there"
    print(f"{name}, {total / 2**30:.2f} GiB ({known}); torch {torch.__version__}; CUDA context {context / MIB:.0f} MiB")
    shape = KNOWN["tinyllama-1.1b" if total > 36 * 2**30 else "smollm2-135m"]
    for recomputes, micro_batch in ((False, 4), (True, 4), (True, 32)):
        case = {"dtype": "bf16", "mode": "full", "zero_stage": 0, "micro_batch": micro_batch, "tokens": [512, 512]}
        case |= {"sequences": 2 * micro_batch, "gradient_checkpointing": recomputes}
        training = training_of(case, gpu=True)
        measured, seconds = measure_cuda(shape, case)
        work = Work(case["sequences"], *case["tokens"])
        plain = update_flops(shape, training_of({**case, "gradient_checkpointing": False}, gpu=True), work)
        peak = device.bf16_flops if device is not None else float("nan")
        yield {
            "case": f"{shape.name} {name_of(case)}",
            "measured": measured,
            "estimated": trainer_memory(shape, training, framework=0).peak,
            "tokens_per_s": work.tokens / seconds,
            "mfu": plain / seconds / peak,
            "with_recomputing": update_flops(shape, training, work) / seconds / peak,
        }


def measure_cuda(shape: ModelShape, case: dict[str, Any]) -> tuple[int, float]:
    """The most that tensors took over three optimizer steps of two micro-batches, and the last step's seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rayrl.models.logprobs import LogprobHead

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                max_position_embeddings=4096,
                tie_word_embeddings=shape.tied,
            )
        )
    torch.set_default_dtype(torch.float32)
    model.train()
    if case["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    head = LogprobHead(model.get_output_embeddings())
    params = list(model.parameters())
    copies = [param.detach().clone().float().requires_grad_() for param in params]
    optimizer = torch.optim.AdamW(copies, lr=1e-5, fused=True)
    seconds = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(case["sequences"] // case["micro_batch"]):
            loss_of(model, head, shape, case).backward()
        step_as_deepspeed(params, copies, optimizer)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return torch.cuda.max_memory_allocated() - before, seconds


def loss_of(model: Any, head: Any, shape: ModelShape, case: dict[str, Any]) -> Any:
    """Mean log-probability of the answers' tokens in one micro-batch of random ones."""
    import torch

    prompt, answer = case["tokens"]
    ids_BL = torch.randint(0, shape.vocab, (case["micro_batch"], prompt + answer), device="cuda")
    hidden_BLD = model.model(input_ids=ids_BL, use_cache=False).last_hidden_state
    hidden_ND = hidden_BLD[:, prompt - 1 : -1].reshape(-1, shape.hidden)
    logprobs_N, _ = head(hidden_ND, ids_BL[:, prompt:].reshape(-1), 1.0, False)
    return -logprobs_N.mean()


def step_as_deepspeed(params: list[Any], copies: list[Any], optimizer: Any) -> None:
    """As DeepSpeed's FP16_UnfusedOptimizer steps: all gradients in float32, a step of the copies, back to bf16."""
    import torch

    for param, copy in zip(params, copies, strict=True):
        copy.grad = param.grad.to(torch.float32)
    optimizer.step()
    with torch.no_grad():
        for param, copy in zip(params, copies, strict=True):
            copy.grad = None
            param.copy_(copy)
            param.grad = None


if __name__ == "__main__":
    sys.exit(main())
