"""Configuration of `rayrl feedback`: several raters, one preference store."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from rayrl.config.judge import JudgeConfig
from rayrl.config.parts import RayConfig
from rayrl.config.sources import SourceConfig
from rayrl.config.strict import CommandConfig, Strict


class RuleConfig(Strict):
    """One shipped rule of the rubric."""

    rule: str = Field(
        description="clarifying_question, reference_overlap, presentation, length_window, repetition or language_match."
    )
    weight: float = Field(1.0, description="Weight in the sum; a negative one punishes.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword options of the rule.")


class RubricConfig(Strict):
    """`rubric`: both answers are scored by a weighted sum of rules."""

    rules: list[RuleConfig] = Field(
        [
            RuleConfig(rule="clarifying_question", weight=2.0),
            RuleConfig(rule="presentation"),
            RuleConfig(rule="repetition"),
            RuleConfig(rule="language_match"),
        ],
        min_length=1,
        description="The rules, each with its weight.",
    )
    epsilon: float = Field(0.05, ge=0, description="Scores that differ by at most this are a tie.")


class RankingSourceConfig(SourceConfig):
    """One annotator's rankings (docs/feedback.md)."""

    criterion: str | None = Field(
        None,
        min_length=1,
        description="What the file ranks, where each criterion was ranked in a file of its own.",
    )


class AdmissionConfig(Strict):
    """What a doctor says who doesn't know; beats every answer where all are wrong."""

    en: str = Field(
        "I'm sorry, I don't know enough to answer this safely. Please ask a doctor who can examine you.",
        min_length=1,
        description="For patients who write any other language than Chinese.",
    )
    zh: str = Field(
        "抱歉，这个问题我没有把握，不敢乱说。请您找医生当面检查，由医生来判断。",
        min_length=1,
        description="For patients who write Chinese.",
    )


class HumanConfig(Strict):
    """`human`: annotators' rankings of K answers."""

    rankings: list[RankingSourceConfig] = Field(min_length=1, description="Rankings, a source an annotator.")
    order: list[str] = Field(
        ["safety", "professionalism", "fluency"],
        min_length=1,
        description="Criteria from the most important on: a later one decides only where the earlier ones tie.",
    )
    min_annotators: PositiveInt = Field(2, description="Items with fewer are set aside.")
    max_disagreement: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of an item's pairs that two annotators may order differently (a tie against an order counts "
        "half); above it the item goes to the third.",
    )
    third: str = Field("third", min_length=1, description="The annotator whose ranking decides wherever there is one.")
    admission: AdmissionConfig | None = Field(
        default_factory=AdmissionConfig,
        description="The answer that beats all others where every one is wrong; null adds none.",
    )


class FileConfig(Strict):
    """`file`: comparisons that exist already."""

    comparisons: list[SourceConfig] = Field(min_length=1, description="Files of pairs, stores, built-in sets.")


class RaterConfig(Strict):
    """One rater: its kind, and the section of that name."""

    kind: Literal["judge", "rubric", "human", "file"] = Field(
        description="A language model, the shipped rules, annotators, or comparisons that exist already."
    )
    judge: JudgeConfig | None = Field(None, description="`judge`: the model and what it is asked.")
    rubric: RubricConfig | None = Field(None, description="`rubric`: rules and weights; has defaults.")
    human: HumanConfig | None = Field(None, description="`human`: rankings and how annotators are brought together.")
    file: FileConfig | None = Field(None, description="`file`: where the comparisons lie.")

    @model_validator(mode="before")
    @classmethod
    def _default_rubric(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("kind") == "rubric" and raw.get("rubric") is None:
            return {**raw, "rubric": {}}
        return raw

    @model_validator(mode="after")
    def _own_section(self) -> RaterConfig:
        sections = {"judge": self.judge, "rubric": self.rubric, "human": self.human, "file": self.file}
        for name, section in sections.items():
            if (section is not None) != (name == self.kind):
                verb = "needs" if name == self.kind else "doesn't take"
                raise ValueError(f"a rater of kind {self.kind!r} {verb} the section {name!r}")
        return self


class FeedbackConfig(CommandConfig):
    """From sampled answers, human rankings and existing pairs to one preference store."""

    command: ClassVar[str] = "feedback"

    output_dir: str = Field("runs/feedback", description="Where the store is written.")
    seed: int = Field(0, ge=0, description="Of the choice of pairs.")
    candidates: str | None = Field(
        None, description="Sampled answers: the output folder of `rayrl sample`. Needed by the judge and the rubric."
    )
    pairs: Literal["all"] | PositiveInt = Field(
        "all", description="Pairs of answers a prompt: all C(K, 2), or so many, chosen by the seed."
    )
    raters: list[RaterConfig] = Field(min_length=1, description="Whose verdicts go into the store.")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows than this stop the run.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Where the judge's actor runs.")

    @model_validator(mode="after")
    def _fits_together(self) -> FeedbackConfig:
        kinds = Counter(rater.kind for rater in self.raters)
        doubled = [kind for kind in ("rubric", "human", "file") if kinds[kind] > 1]
        if doubled:
            raise ValueError(f"raters: two of kind {doubled[0]!r}; one takes several sources or rules")
        models = [rater.judge.model for rater in self.raters if rater.judge is not None]
        if len(set(models)) < len(models):
            raise ValueError("raters: two judges of one model; rows are told apart by it, so run them one by one")
        if self.candidates is None and (kinds["judge"] or kinds["rubric"]):
            raise ValueError("candidates: the judge and the rubric need sampled answers; name their folder")
        if self.candidates is not None and not (kinds["judge"] or kinds["rubric"]):
            raise ValueError("candidates: neither a judge nor a rubric is there to rate them")
        return self
