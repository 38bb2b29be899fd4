"""Configuration of `rayrl eval`: which models, on which sets, judged by whom.

    models:
      - {name: start, model: runs/sft/model}
      - {name: trained, model: runs/ppo/policy}
    questions: [{name: heldout, path: consultations-en}]
    exams: [{name: cmexam, path: data/cmexam.csv}]
    pairwise: {criteria: huatuogpt}

Every section of sets may be left out; at least one must be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from rayrl.config.encoding import Encoding
from rayrl.config.judge import CriterionConfig, EndpointConfig, JudgeConfig
from rayrl.config.parts import RayConfig, RolloutConfig
from rayrl.config.sources import SourceConfig
from rayrl.config.strict import CommandConfig, Strict
from rayrl.config.versus import VersusConfig

_NAME = r"^[^\s/=+]+$"

CLINICAL_CRITERIA = ("fluency", "relevance", "completeness", "proficiency")
"""CMB-Clin's, as HuatuoGPT-II scores them from 1 to 5."""
LOCAL_PATIENT = "local-patient"
"""The endpoint that the stage starts itself: a patient of a few rules."""


class ModelEndpointConfig(EndpointConfig):
    """A model to evaluate behind an endpoint. Two servers may call different models by one name."""

    of_this_address: ClassVar[bool] = True


class EvalModelConfig(Strict):
    """One model to evaluate: a checkpoint, a model behind an endpoint, or answers that are there already."""

    name: str = Field(pattern=_NAME, description="What tables call it.")
    model: str | None = Field(None, min_length=1, description="Checkpoint folder, hub name or built-in model.")
    endpoint: ModelEndpointConfig | None = Field(
        None, description="A model behind an OpenAI-compatible endpoint; its own temperature and max_tokens hold."
    )
    published: str | None = Field(
        None, min_length=1, description="Answers that the sets' rows hold themselves, under this name."
    )
    chat_template: str | None = Field(None, description="Jinja chat template, for tokenizers without one of their own.")
    system_prompt: str | None = Field(None, description="In place of the run's `system_prompt`; an empty one is none.")
    rollout: RolloutConfig | None = Field(None, description="A checkpoint's own engines and decoding.")
    runs: list[str] = Field(
        [], description="Folders of the `rayrl sft` runs that made it, in order, whose loss curves are drawn."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> EvalModelConfig:
        given = [name for name in ("model", "endpoint", "published") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{self.name}: name one of model, endpoint and published, got {', '.join(given) or 'none'}"
            )
        return self


class QuestionSetConfig(SourceConfig):
    """Questions that every model answers once; with references, answers are measured against them."""

    category: str | None = Field(
        None,
        description="The field whose values tables are split by; by default the first there is of intent, department, "
        "label, cate1, topic.",
    )
    outputs: dict[str, str] = Field(
        default_factory=dict,
        description="Published answers in files of their own: a name for `models.published` -> a file whose rows "
        "repeat the question and hold a `model_output`.",
    )
    heldout_of: str | None = Field(
        None, min_length=1, description="Folder of a `rayrl ppo` run: only the prompts that it held out."
    )
    num: PositiveInt | None = Field(None, description="So many of them, drawn by the seed; by default all.")
    language: Literal["auto", "en", "zh"] = Field("auto", description="Of the answers; `auto` looks at the questions.")
    level: Literal["auto", "characters", "words"] = Field(
        "auto", description="What metrics count; `auto`: characters of Chinese, words of English."
    )
    metrics: bool = Field(True, description="Whether answers are measured (BLEU, ROUGE, length, ...).")
    pairwise: bool = Field(True, description="Whether `pairwise` compares its answers.")
    scored: bool = Field(True, description="Whether `scored` scores its answers.")


class ExamConfig(Strict):
    """Multiple-choice questions (docs/evaluation.md lists the formats)."""

    name: str = Field(pattern=_NAME, description="What tables call it.")
    path: str = Field(min_length=1, description="A file or a folder.")
    encoding: Encoding = Field("auto", description="Of text files.")
    mode: Literal["answer", "letters", "texts"] = Field(
        "answer",
        description="`answer`: the model writes, its choice is read from the text. `letters`, `texts`: the letter, or "
        "the option's text, that it gives the highest log-probability (checkpoints only).",
    )
    chat: bool = Field(
        True, description="`letters` and `texts`: ask through the chat template; false continues plain text."
    )
    shots: int = Field(0, ge=0, description="Solved questions put before each one.")
    shots_path: str | None = Field(None, description="Where they are from; by default the set itself, other groups.")
    num: PositiveInt | None = Field(None, description="So many questions, drawn by the seed; by default all.")
    cop_base: Literal[0, 1] | None = Field(
        None, description="MedMCQA: the number of the first option, where the file doesn't tell."
    )


class ConsultationSetConfig(Strict):
    """Cases for consultations with a simulated patient."""

    name: str = Field(pattern=_NAME, description="What tables call it.")
    path: str = Field(min_length=1, description="A file of cases, or a built-in set.")
    num: PositiveInt | None = Field(None, description="So many of them, drawn by the seed; by default all.")
    outputs: dict[str, str] = Field(
        default_factory=dict,
        description="Published answers in files of their own: a name for `models.published` -> a file whose rows "
        "repeat the case and hold a `model_output`.",
    )
    rounds: PositiveInt = Field(4, description="Doctor's turns at most; the patient may say goodbye before.")
    pairwise: bool = Field(True, description="Whether `pairwise` compares the consultations.")


class PatientConfig(EndpointConfig):
    """The model that plays the patient."""

    endpoint: str = Field(
        LOCAL_PATIENT,
        description="Base URL of the endpoint (https://HOST/v1), or `local-patient`: a patient of a few rules, served "
        "by the stage itself, to try everything without a key.",
    )
    model: str = Field("patient", min_length=1, description="The model's name there.")
    local: ClassVar[tuple[str, ...]] = (LOCAL_PATIENT,)

    @model_validator(mode="after")
    def _named(self) -> PatientConfig:
        if self.endpoint not in self.local and "model" not in self.model_fields_set:
            raise ValueError(f"patient.model: name the model at {self.endpoint} that plays the patient")
        return self


class SafetySetConfig(Strict):
    """Requests that must be refused, can't be known, are urgent, or only sound bad."""

    name: str = Field(pattern=_NAME, description="What tables call it.")
    path: str = Field(min_length=1, description="A file, or a built-in set (safety-en, safety-zh).")


class ExpertsConfig(Strict):
    """Physicians' blind choices between two models' answers."""

    name: str = Field(pattern=_NAME, description="What tables call it.")
    path: str = Field(
        min_length=1, description="CSV: id, expert, model_a, model_b, choice (a, tie, b), and category if you like."
    )


AnySetConfig = QuestionSetConfig | ExamConfig | ConsultationSetConfig | SafetySetConfig | ExpertsConfig


class PairwiseConfig(VersusConfig):
    """Two models' answers to one question, shown in both orders."""

    against: Literal["baseline", "all"] = Field(
        "baseline", description="Each model against the first one, or every two of them (which also ranks them)."
    )


class ScoredConfig(Strict):
    """Each answer by itself, scored by a judge."""

    judge: JudgeConfig = Field(default_factory=JudgeConfig, description="Who judges; `criteria` as below.")
    criteria: list[CriterionConfig] = Field(
        [CriterionConfig(name=name) for name in CLINICAL_CRITERIA],
        min_length=1,
        description="What is scored; by default as CMB-Clin is.",
    )
    low: int = Field(1, ge=0, description="The scale's lower end.")
    high: int = Field(5, ge=1, description="Its upper end.")
    human: str | None = Field(
        None, description="CSV of people's scores (id, model, rater, a column a criterion), to check the judge against."
    )

    @model_validator(mode="after")
    def _scale(self) -> ScoredConfig:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} isn't below high, {self.high}")
        return self

    @property
    def asked(self) -> JudgeConfig:
        """The judge with the criteria that it is asked for."""
        return self.judge.model_copy(update={"criteria": self.criteria})


class EvalConfig(CommandConfig):
    """Models on sets of questions, exams, consultations and safety requests."""

    command: ClassVar[str] = "eval"

    output_dir: str = Field("runs/eval", description="Where tables and the report go.")
    seed: int = Field(0, ge=0, description="Of draws, of sampled answers and of resampling.")
    answers: str = Field(
        "runs/answers", min_length=1, description="Folder of answers, which evaluations share: none is made twice."
    )
    models: list[EvalModelConfig] = Field(min_length=1, description="What is evaluated; the first is the baseline.")
    system_prompt: str | None = Field(
        None, description="Put before everything that a model is asked (`chat: false` exams apart)."
    )
    rollout: RolloutConfig = Field(
        default_factory=lambda: RolloutConfig(max_prompt_tokens=1536, max_new_tokens=512, temperature=0.0),
        description="How checkpoints answer.",
    )
    shard_size: PositiveInt = Field(64, description="Questions that an engine takes at one time.")
    questions: list[QuestionSetConfig] = Field([], description="Questions, with or without references.")
    exams: list[ExamConfig] = Field([], description="Multiple-choice questions.")
    consultations: list[ConsultationSetConfig] = Field([], description="Cases for a simulated patient.")
    safety: list[SafetySetConfig] = Field([], description="Safety sets.")
    experts: list[ExpertsConfig] = Field([], description="Physicians' choices.")
    pairwise: PairwiseConfig | None = Field(None, description="Comparison of answers, two by two.")
    scored: ScoredConfig | None = Field(None, description="Scores of single answers.")
    patient: PatientConfig = Field(default_factory=PatientConfig, description="Who plays the patient.")
    max_rejected_fraction: float = Field(0.05, ge=0, le=1, description="More bad rows in a set than this stop the run.")
    max_unanswered_fraction: float = Field(
        0.05, ge=0, le=1, description="More questions of a set than this that a model gave no answer to stop the run."
    )
    resamples: PositiveInt = Field(1000, description="Bootstrap resamples of an interval.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Ray: where, and how long to wait.")

    @model_validator(mode="after")
    def _fits_together(self) -> EvalConfig:
        _different("models", (model.name for model in self.models))
        _different("sets", (one.name for one in self.sets))
        if not self.sets:
            raise ValueError("name what to evaluate on: questions, exams, consultations, safety or experts")
        compared = [one.pairwise for one in self.questions] + [one.pairwise for one in self.consultations]
        if self.pairwise is not None and any(compared) and len(self.models) < 2:
            raise ValueError("pairwise: two models at least are needed")
        scored = [exam.name for exam in self.exams if exam.mode != "answer"]
        others = [model.name for model in self.models if model.model is None]
        if scored and len(others) == len(self.models):
            raise ValueError(f"exams: log-probabilities ({scored[0]}) need a checkpoint among the models")
        return self

    @property
    def sets(self) -> list[AnySetConfig]:
        """All sets, of whatever kind."""
        return [*self.questions, *self.exams, *self.consultations, *self.safety, *self.experts]

    def rollout_of(self, model: EvalModelConfig) -> RolloutConfig:
        """How a checkpoint answers."""
        return model.rollout if model.rollout is not None else self.rollout

    def system_of(self, model: EvalModelConfig) -> str | None:
        """The system prompt that a model is given; None where it gets none."""
        return (self.system_prompt if model.system_prompt is None else model.system_prompt) or None


def _different(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: two are called {name!r}")
        seen.add(name)
