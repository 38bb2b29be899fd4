"""Metrics through Ray's own exporter: each node's agent offers them to Prometheus, with those of Ray itself.

A process that isn't connected to Ray records nothing. What is recorded costs microseconds; Ray sends it every few
seconds (https://docs.ray.io/en/latest/ray-observability/user-guides/add-app-metrics.html). What is measured is the
caller's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric. Example: Metric("rayrl_score", "gauge", "Mean score.", ("source",))"""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets. Its sum is no good: Ray makes it from the buckets' middles."""

    @property
    def exported(self) -> tuple[str, ...]:
        """What Prometheus calls it."""
        name = f"ray_{self.name}"
        return {
            "gauge": (name,),
            "counter": (f"{name}_total",),
            "histogram": (f"{name}_bucket", f"{name}_count", f"{name}_sum"),
        }[self.kind]


class Exporter:
    """Records values of metrics, each with the tags that all have in common and its own."""

    def __init__(self, metrics: Iterable[Metric], tags: Mapping[str, str]) -> None:
        """`tags`: common to all, as in {"run": "first"}."""
        self._metrics = {metric.name: metric for metric in metrics}
        self._tags = dict(tags)
        self._made: dict[str, Any] = {}

    def record(self, name: str, value: float, **tags: str) -> None:
        """Sets a gauge, adds to a counter (which ignores 0), or observes a value of a histogram."""
        ray = sys.modules.get("ray")  # a process that hasn't loaded it needn't now
        if ray is None or not ray.is_initialized():
            return
        metric = self._metrics[name]
        if name not in self._made:
            self._made[name] = _make(metric, (*self._tags, *metric.tags))
        own = {**self._tags, **tags}
        if metric.kind == "gauge":
            self._made[name].set(value, own)
        elif metric.kind == "histogram":
            self._made[name].observe(value, own)
        elif value > 0:
            self._made[name].inc(value, own)


def _make(metric: Metric, tag_keys: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.description, boundaries=list(metric.bounds), tag_keys=tag_keys)
    kind = Gauge if metric.kind == "gauge" else Counter
    return kind(metric.name, metric.description, tag_keys=tag_keys)
