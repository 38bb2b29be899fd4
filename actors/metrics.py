"""A step's metrics and sample rows from what the coordinator sees of its batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from actors.generation import Batch
from rayrl.errors import RunError
from rayrl.types import MixedScores, PromptRow, Sample


def batch_metrics(
    step: int, batch: Batch, scores: MixedScores, stats: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Scores by source, lengths, entropy, the engine's gap. `stats`: one mapping a policy rank, sums over its tokens.

    Raises RunError where a number isn't finite.
    """
    lengths = [info.num_tokens for info in batch.infos]
    tokens = sum(stat["tokens"] for stat in stats)
    metrics = {
        "score/mixed": _mean(scores.mixed_B),
        "length/mean": _mean(lengths),
        "length/max": float(max(lengths)),
        "length/ended_share": _mean([float(info.ended) for info in batch.infos]),
        "engine/logprob_gap": sum(stat["gap_sum"] for stat in stats) / tokens,
        "engine/logprob_gap_max": max(stat["gap_max"] for stat in stats),
        "policy/entropy": sum(stat["entropy_sum"] for stat in stats) / tokens,
        "weights/version": float(step),
        "tokens/response": float(sum(lengths)),
    }
    for name, raw in scores.raw.items():
        given = [score for score in raw if score is not None]
        normalised = [score for score in scores.normalised[name] if score is not None]
        if given:
            metrics |= {f"score/{name}": _mean(given), f"score_normalised/{name}": _mean(normalised)}
        metrics[f"omitted/{name}"] = float(scores.omitted[name])
    require_finite(step, metrics)
    return metrics


def sample_ids(batch: Batch, passes: Sequence[int], samples_per_prompt: int) -> list[str]:
    """A name for each rollout of a batch, unique in the run: "PASS/PROMPT#INDEX". `passes`: of the batch's prompts."""
    return [
        f"{passes[i // samples_per_prompt]}/{info.prompt_id}#{i % samples_per_prompt}"
        for i, info in enumerate(batch.infos)
    ]


def training_samples(
    step: int, batch: Batch, prompts: Sequence[PromptRow], scores: MixedScores, limit: int
) -> list[Sample]:
    """The first `limit` rollouts whose text came along, as rows of the sample log."""
    rows = {row.id: row for row in prompts}
    samples: list[Sample] = []
    for i, info in enumerate(batch.infos):
        if info.text is None or len(samples) == limit:
            continue
        row = rows[info.prompt_id]
        samples.append(
            Sample(
                step=step,
                split="train",
                prompt_id=row.id,
                messages=row.messages,
                response=info.text,
                reference=row.reference,
                raw={name: column[i] for name, column in scores.raw.items()},
                normalised={name: column[i] for name, column in scores.normalised.items()},
                mixed=scores.mixed_B[i],
                num_tokens=info.num_tokens,
            )
        )
    return samples


def require_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Stops before weights that such numbers come from reach an engine or a checkpoint."""
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise RunError(
            f"step {step}: {', '.join(bad[:4])}: training has diverged; start again in another output_dir "
            "with lower learning rates (policy.optimizer.lr, critic.optimizer.lr) or bounded scores (mixture.clip)"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
