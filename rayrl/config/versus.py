"""Configuration of comparing two answers to one question: who says which is better, on what, and when it wins.

A section of `rayrl eval`, and of training runs that compare their answers with those they began with.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rayrl.config.feedback import RubricConfig
from rayrl.config.judge import JudgeConfig
from rayrl.config.strict import Strict

CRITERIA: dict[str, tuple[str, ...]] = {
    "huatuogpt": ("diagnosis", "treatment", "medication", "inquiry"),
    "huatuogpt2": ("responsiveness", "informativeness", "professionalism", "care"),
    "zhongjing": ("safety", "professionalism", "fluency"),
}
"""Criteria of pairwise judging by paper: HuatuoGPT (section 4.3), HuatuoGPT-II (Figure 11), Zhongjing (Table 2)."""


class VersusConfig(Strict):
    """A judge that is shown both answers in both orders, or rules."""

    judge: JudgeConfig | None = Field(None, description="Who judges; by default the shipped rubric behind HTTP.")
    rubric: RubricConfig | None = Field(None, description="Rules in a judge's place: no requests, no orders.")
    criteria: Literal["huatuogpt", "huatuogpt2", "zhongjing", "own"] = Field(
        "huatuogpt", description="What is judged: a paper's criteria, or `own`: the judge's `criteria`."
    )
    ties: Literal["consistent", "points", "sum", "priority"] = Field(
        "consistent",
        description="When an answer wins: `consistent` in both orders; `points` by the sum of 10:0, 5:5, 0:10 over "
        "the orders (HuatuoGPT-II); `sum` by both orders' scores together; `priority` by the first criterion on which "
        "it wins in both orders (Zhongjing). Else it is a tie.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_judge(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("judge") is None and raw.get("rubric") is None:
            return {**raw, "judge": {}}
        return raw

    @model_validator(mode="after")
    def _one_rater(self) -> VersusConfig:
        if self.judge is not None and self.rubric is not None:
            raise ValueError("name a judge or a rubric, not both")
        if self.rubric is not None and self.ties != "consistent":
            raise ValueError("ties: a rubric has no orders and no criteria; leave it out")
        return self

    @property
    def asked(self) -> JudgeConfig | None:
        """The judge with the criteria that it is asked for."""
        if self.judge is None or self.criteria == "own":
            return self.judge
        return self.judge.with_criteria(CRITERIA[self.criteria])
