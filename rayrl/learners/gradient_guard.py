"""Exploding gradients: found by the running median of their norms, answered as Zhongjing does.

Its paper (arXiv 2308.03549, appendix) halves the loss and decays the learning rate when gradients explode. The step
itself is clipped like any other (one whose gradient isn't finite changes nothing); what changes is what comes after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rayrl.config.sft import GuardConfig
from rayrl.errors import RunError

FILL = 8
"""Norms before the median is trusted."""


@dataclass
class GradientGuard:
    """The state of the guard; it goes into every checkpoint."""

    config: GuardConfig
    loss_scale: float = 1.0
    rate_scale: float = 1.0
    skipped: int = 0
    """Steps in a row whose gradient wasn't finite."""
    norms: list[float] = field(default_factory=list)
    """Of the last steps, of the unscaled loss."""

    def observe(self, norm: float, step: int) -> dict[str, float]:
        """Takes the norm of a step's gradient (of the scaled loss) and adapts both scales; what to log of it.

        Raises RunError after too many steps in a row without a finite gradient.
        """
        config = self.config
        if not math.isfinite(norm):
            self.skipped += 1
            if self.skipped >= config.max_skipped:
                raise RunError(
                    f"step {step}: the gradient of {self.skipped} steps in a row isn't finite; lower "
                    "model.optimizer.lr, lengthen the warm-up, or train in fp32"
                )
            self._explode()
            return {"guard/skipped": 1.0, **self._scales()}
        self.skipped = 0
        plain = norm / self.loss_scale
        usual = median(self.norms) if len(self.norms) >= min(FILL, config.window) else math.inf
        exploded = config.factor is not None and plain > config.factor * usual
        self.norms = [*self.norms, plain][-config.window :]
        if exploded:
            self._explode()
        return {"guard/exploded": float(exploded), **self._scales()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        scales = {"loss_scale": self.loss_scale, "rate_scale": self.rate_scale}
        return {**scales, "skipped": self.skipped, "norms": self.norms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        self.loss_scale, self.rate_scale = state["loss_scale"], state["rate_scale"]
        self.skipped, self.norms = state["skipped"], list(state["norms"])

    def _explode(self) -> None:
        if self.config.factor is not None:
            self.loss_scale *= self.config.loss_scale
            self.rate_scale *= self.config.rate_decay

    def _scales(self) -> dict[str, float]:
        return {"guard/loss_scale": self.loss_scale, "guard/rate_scale": self.rate_scale}
