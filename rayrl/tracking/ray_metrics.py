"""A run's metrics for Prometheus, through Ray's exporter: the one table of their names, and the logger that sets them.

They come from the rows of metrics.jsonl; what changes within a step (queues) comes through `RunLog.now`. Panels that
show them are in rayrl/assets/grafana. Texts of prompts and answers never go this way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from cluster.exporter import Exporter, Metric
from rayrl.types import Sample

_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)

METRICS = (
    Metric("rayrl_step", "gauge", "Steps that are done."),
    Metric("rayrl_step_seconds", "histogram", "Wall time of a step.", bounds=_SECONDS),
    Metric("rayrl_phase_seconds", "gauge", "Wall time of each phase in the last step.", ("phase",)),
    Metric("rayrl_tokens_per_second", "gauge", "Sampled tokens a second of the last step's wall time."),
    Metric("rayrl_tokens", "counter", "Sampled tokens."),
    Metric("rayrl_answer_tokens", "gauge", "Mean length of the last step's answers."),
    Metric("rayrl_busy_share", "gauge", "Share of the last step in which an actor of the role worked.", ("role",)),
    Metric("rayrl_idle_seconds", "gauge", "Seconds of the last step in which no actor worked."),
    Metric("rayrl_engines_up", "gauge", "Engines that sample."),
    Metric("rayrl_engines_wanted", "gauge", "Engines that the configuration asks for."),
    Metric("rayrl_prompts_waiting", "gauge", "Prompts that no engine has been given yet."),
    Metric("rayrl_prompts_running", "gauge", "Prompts that engines are answering."),
    Metric("rayrl_sync_seconds", "histogram", "Wall time of a weight sync.", bounds=_SECONDS),
    Metric("rayrl_sync_bytes", "counter", "Bytes of weights sent to each engine."),
    Metric("rayrl_score", "gauge", "Mean raw score of the last step by source; mixed is the whole.", ("source",)),
    Metric("rayrl_heldout_score", "gauge", "Mean mixed score of held-out prompts, as of the last evaluation."),
    Metric("rayrl_kl", "gauge", "KL from the reference, nats a sequence."),
    Metric("rayrl_kl_coefficient", "gauge", "Coefficient of the KL penalty."),
    Metric("rayrl_logprob_gap", "gauge", "Mean gap between engine's and trainer's log-probabilities, nats."),
    Metric("rayrl_recoveries", "counter", "What was lost and came back, by cause.", ("cause",)),
    Metric("rayrl_recovery_seconds", "counter", "Time lost in recoveries."),
    Metric("rayrl_checkpoint_timestamp_seconds", "gauge", "When the last checkpoint was made, since the epoch."),
)

_BY_KEY: Mapping[str, str] = {
    "time/step": "rayrl_step_seconds",
    "time/sync": "rayrl_sync_seconds",
    "time/tokens_per_second": "rayrl_tokens_per_second",
    "time/nothing_running": "rayrl_idle_seconds",
    "tokens/response": "rayrl_tokens",
    "length/mean": "rayrl_answer_tokens",
    "cluster/engines": "rayrl_engines_up",
    "cluster/engines_wanted": "rayrl_engines_wanted",
    "queue/waiting": "rayrl_prompts_waiting",
    "queue/running": "rayrl_prompts_running",
    "weights/bytes": "rayrl_sync_bytes",
    "eval/mixed": "rayrl_heldout_score",
    "kl/mean_per_sequence": "rayrl_kl",
    "kl/coef": "rayrl_kl_coefficient",
    "engine/logprob_gap": "rayrl_logprob_gap",
    "recovery/seconds": "rayrl_recovery_seconds",
}
"""Keys of metrics.jsonl, and of what is true now, that are a metric by themselves."""
_BY_PREFIX: Mapping[str, tuple[str, str]] = {
    "time/": ("rayrl_phase_seconds", "phase"),
    "busy/": ("rayrl_busy_share", "role"),
    "score/": ("rayrl_score", "source"),
    "recovery/": ("rayrl_recoveries", "cause"),
}
"""Where the rest of the key is a tag."""
_APART = {"time/step", "time/tokens_per_second", "time/nothing_running", "recovery/events", "recovery/seconds"}
"""Keys whose rest isn't one: "step" is no phase."""


class RayMetricsLogger:
    """A logger (loggers.py) that is always there, and does nothing where the process isn't connected to Ray."""

    def __init__(self, run: str) -> None:
        """`run`: the value of the tag by which runs are told apart."""
        self._exporter = Exporter(METRICS, {"run": run})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A step's row."""
        self._exporter.record("rayrl_step", step + 1)
        self.now(values)

    def now(self, values: Mapping[str, float]) -> None:
        """Values by the keys of metrics.jsonl, "queue/..." or "checkpoint/age_s"; others are passed over."""
        if "checkpoint/age_s" in values:
            made = time.time() - values["checkpoint/age_s"]
            self._exporter.record("rayrl_checkpoint_timestamp_seconds", made)
        for key, value in values.items():
            if key in _BY_KEY:
                self._exporter.record(_BY_KEY[key], value)
            for prefix, (name, tag) in _BY_PREFIX.items():
                if key.startswith(prefix) and key not in _APART:
                    self._exporter.record(name, value, **{tag: key.removeprefix(prefix)})

    def samples(self, samples: Sequence[Sample]) -> None:
        """Nothing: texts stay in the run's folder."""

    def close(self) -> None:
        """Nothing is held."""
