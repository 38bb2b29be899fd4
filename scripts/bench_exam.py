"""Time multiple-choice questions by log-probability, rayrl's and lm-evaluation-harness's: one JSON line each, then how
often both choose the same.

    .venv/bin/python scripts/bench_exam.py ../shared/data/exam_mcq.jsonl                    # rayrl alone
    .venv/bin/python scripts/bench_exam.py ../shared/data/exam_mcq.jsonl --against-lm-eval  # both in turn, and ratios
    ... --against-lm-eval --mode texts      # options' texts in place of letters
    ... --against-lm-eval --shots 5         # after five answered examples, the same before every question

The work: the first `--questions` of a file (any that `read_exam` reads) to SmolLM2-135M-Instruct in float32, as
`plain_choice` words them; both get the same text, and split it into tokens by themselves. rayrl also runs once with
`dtype auto` (bf16 where the processor is fast at it).

`answer_s` is from text to log-probabilities: splitting, batching, forward passes. In lm-evaluation-harness it is what
its `HFLM.loglikelihood` takes; the making of its requests, its metrics and its reading of data aren't in it. `load_s`
is from the first import to a model in memory, `command_s` the whole process, from start to end. `cpu_s` are processor
seconds of `answer_s`: where other work runs on the machine, those of `--threads 1` say more than any clock, since two
threads that wait for each other at every product lose more than their share.

Each system runs in a process of its own, lm-evaluation-harness in its own environment, `.bench/lm_eval` in the
checkout, made on the first run (PyPI only), as a local task; what it prints goes to `.bench/lm_eval.log`. Like rayrl
it asks once for all options of one token. Small batches suit it, whose logits are as large as a batch's padded
tokens times the vocabulary (100 questions, one thread, cpu_s; with two threads, 4 and 8 were the fastest):

    batch size      1      2      4      8     16
    cpu_s        49.4   48.2   50.6   55.1   70.1      rayrl: 36.9
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench"
PINS = ("torch==2.13.0", "transformers==5.19.0", "lm_eval[hf]==0.4.13")
MODEL = "smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="questions, in any form that rayrl reads")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--mode", choices=("letters", "texts"), default="letters")
    parser.add_argument("--shots", type=int, default=0, help="answered examples before each question")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-batch-tokens", type=int, default=1024, help="rayrl's")
    parser.add_argument("--against-lm-eval", action="store_true", help="also run lm-evaluation-harness, in turn")
    parser.add_argument("--batch-size", default="4", help="lm-evaluation-harness's")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, with --against-lm-eval")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # this script again, in a process of its own
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.file.read_text("utf-8"))
        result = {"rayrl": time_rayrl, "lm-eval": time_lm_eval}[args.job](job)
        Path(job["result"]).write_text(json.dumps(result), "utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="rayrl-bench-") as folder:
        job = make_job(args, Path(folder))
        if args.against_lm_eval:
            compare(job, args.rounds)
        else:
            run("rayrl", job)
        run("rayrl", {**job, "dtype": "auto"})


def make_job(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The questions as text, and the settings of both."""
    from rayrl.data.readers.exams import read_exam
    from rayrl.evaluation.exams.prompts import plain_choice
    from rayrl.models.builtin import resolve_model

    items = read_exam(str(args.file), name="exam").items
    examples = items[len(items) - args.shots :]
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for item in items[: args.questions]:
            text = plain_choice(item, examples, args.mode)
            row = {"context": text.context, "space": text.space, "texts": text.texts, "answers": text.answers}
            right = {"choices": [text.space + one for one in text.texts], "gold": text.answers.index(item.answer)}
            file.write(json.dumps({**row, **right}, ensure_ascii=False) + "\n")
    return {
        "folder": str(folder),
        "result": str(folder / "result.json"),
        "model": resolve_model(MODEL),
        "dtype": "fp32",
        "threads": args.threads,
        "max_batch_tokens": args.max_batch_tokens,
        "batch_size": args.batch_size,
    }


def compare(job: dict[str, Any], rounds: int) -> None:
    """Both in turn; medians, ratios and how often they choose the same."""
    runs: dict[str, list[dict[str, Any]]] = {"rayrl": [], "lm-eval": []}
    for _ in range(rounds):
        for system, results in runs.items():
            results.append(run(system, job))
    ours, theirs = (
        {key: statistics.median(result[key] for result in results) for key in ("answer_s", "cpu_s", "command_s")}
        for results in runs.values()
    )
    sums = [[np.array(one) for one in results[-1]["logprobs"]] for results in runs.values()]
    same = np.mean([left.argmax() == right.argmax() for left, right in zip(*sums, strict=True)])
    gap = max(float(np.abs(left - right).max()) for left, right in zip(*sums, strict=True))
    faster = {key: round(theirs[key] / ours[key], 2) for key in ours}
    print(json.dumps({"equal_predictions": float(same), "largest_difference_nats": gap, "times_as_fast": faster}))


def run(system: str, job: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own; prints its line."""
    python = sys.executable if system == "rayrl" else make_environment()
    path = Path(job["folder"]) / "job.json"
    path.write_text(json.dumps(job), "utf-8")
    alone = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": job["folder"]}
    env = {**os.environ, **alone, "OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    if system != "rayrl":
        env.pop("PYTHONPATH", None)
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{system.replace('-', '_')}.log").open("w") as log:
        began = time.perf_counter()
        command = [python, __file__, path, "--job", system]
        subprocess.run(command, check=True, env=env, stdout=log, stderr=subprocess.STDOUT)
        command_s = time.perf_counter() - began
    result: dict[str, Any] = {**json.loads(Path(job["result"]).read_text("utf-8")), "command_s": round(command_s, 1)}
    print(json.dumps({key: value for key, value in result.items() if key != "logprobs"}), flush=True)
    return result


def make_environment() -> Path:
    """Python of lm-evaluation-harness's environment, installed on the first call; a changed pin makes it anew."""
    folder = FOLDER / "lm_eval"
    ready, python = folder / "pins.json", folder / "bin" / "python"
    if not ready.exists() or json.loads(ready.read_text()) != list(PINS):
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / ".gitignore").write_text("*\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True, stdout=sys.stderr)
        ready.write_text(json.dumps(PINS))
    return python


def time_rayrl(job: dict[str, Any]) -> dict[str, Any]:
    """rayrl's scorer in this process."""
    began = time.perf_counter()
    from rayrl.data.chat import load_tokenizer
    from rayrl.evaluation.exams.prompts import ChoiceText, encode
    from rayrl.models.choices import ChoiceScorer
    from rayrl.models.loading import dtype_name

    tokenizer = load_tokenizer(job["model"])
    scorer = ChoiceScorer(
        job["model"], job["dtype"], tokenizer.pad_token_id, job["threads"], max_batch_tokens=job["max_batch_tokens"]
    )
    load_s = time.perf_counter() - began
    rows = read_rows(job)
    began, cpu_began = time.perf_counter(), time.process_time()
    texts = [ChoiceText(row["context"], row["space"], row["texts"], row["answers"], True) for row in rows]
    questions = [encode(tokenizer, text) for text in texts]
    sums = scorer.score(questions)
    seconds = time.perf_counter() - began, time.process_time() - cpu_began
    system = f"rayrl {dtype_name(job['dtype'])} max_batch_tokens {job['max_batch_tokens']}"
    tokens = sum(len(question.prompt_ids_P) for question in questions)
    return {**summary(system, job, rows, [found.tolist() for found in sums], load_s, seconds), "prompt_tokens": tokens}


def time_lm_eval(job: dict[str, Any]) -> dict[str, Any]:
    """lm-evaluation-harness in this process, on a task of its own kind that reads the same rows."""
    began = time.perf_counter()
    import torch

    torch.set_num_threads(job["threads"])
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    class Timed(HFLM):
        seconds = (0.0, 0.0)

        def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
            began, cpu_began = time.perf_counter(), time.process_time()
            found = super().loglikelihood(*args, **kwargs)
            self.seconds = time.perf_counter() - began, time.process_time() - cpu_began
            return found

    model = Timed(pretrained=job["model"], dtype="float32", device="cpu", batch_size=job["batch_size"])
    load_s = time.perf_counter() - began
    task = {
        "task": "rayrl_exam",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{job['folder']}/questions.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    tasks = Path(job["folder"]) / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "rayrl_exam.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    done = lm_eval.simple_evaluate(model=model, tasks=["rayrl_exam"], task_manager=manager, bootstrap_iters=0)
    assert done is not None
    samples = sorted(done["samples"]["rayrl_exam"], key=lambda sample: sample["doc_id"])
    sums = [[float(found[0]) for found in sample["filtered_resps"]] for sample in samples]
    system = f"lm-eval {lm_eval.__version__} float32 batch_size {job['batch_size']}"
    return summary(system, job, read_rows(job), sums, load_s, model.seconds)


def read_rows(job: dict[str, Any]) -> list[dict[str, Any]]:
    with (Path(job["folder"]) / "questions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def summary(
    system: str,
    job: dict[str, Any],
    rows: list[dict[str, Any]],
    logprobs: list[list[float]],
    load_s: float,
    seconds: tuple[float, float],
) -> dict[str, Any]:
    right = [np.argmax(found) == row["gold"] for found, row in zip(logprobs, rows, strict=True)]
    return {
        "system": system,
        "threads": job["threads"],
        "questions": len(rows),
        "accuracy": round(float(np.mean(right)), 4),
        "load_s": round(load_s, 1),
        "answer_s": round(seconds[0], 1),
        "cpu_s": round(seconds[1], 1),
        "logprobs": logprobs,
    }


if __name__ == "__main__":
    main()
