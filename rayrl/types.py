"""The records that flow through rayrl, in the order in which data flows.

    Conversation -> Candidates -> Ranking, Comparison -> (reward model)
    PromptRow -> Prompt -> Rollout -> Scores -> Experience -> StepMetrics

Shapes: B sequences of a batch, T tokens of a response, P tokens of a prompt. Records hold numpy arrays, not
tensors, so that Ray moves them without a copy. Nothing here imports Ray or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np


class Message(TypedDict):
    """One turn of a conversation. Example: {"role": "user", "content": "I have a headache."}"""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Origin:
    """Where a record came from. Example: Origin("huatuo", "real", "conversation", "data/huatuo.jsonl", 7)"""

    source: str
    """The source's name in the configuration."""
    kind: Literal["distilled", "real", "unknown"]
    """Written by a model, or by people."""
    form: Literal["instruction", "conversation", "text"]
    """One question and its answer, several turns, or plain text."""
    file: str
    line: int
    """Line of a text file, row of a table, item of a JSON list; from 1."""


@dataclass(frozen=True)
class Conversation:
    """A dialogue to learn from; it ends with the assistant's answer.

    Example: Conversation("huatuo-7", [{"role": "user", ...}, {"role": "assistant", ...}], origin)
    """

    id: str
    messages: list[Message]
    origin: Origin
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """Plain text for continued pre-training. Example: Document("book-3", "The common cold is ...", origin)"""

    id: str
    text: str
    origin: Origin
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """One prompt as a user has it on disk: a conversation that ends with the patient's turn.

    Example: PromptRow("en-7", [{"role": "user", "content": "My knee hurts"}], "How?", {"missing_info": ["cause"]})
    """

    id: str
    messages: list[Message]
    reference: str | None = None
    """The doctor's answer."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What rewards may look at. `missing_info`: what a doctor must ask for; an empty list: nothing is missing."""


@dataclass(frozen=True)
class Candidates:
    """K answers to one prompt, still unjudged. Example: Candidates(row, ["Rest.", "How long?"], "runs/sft/model")"""

    prompt: PromptRow
    answers: list[str]
    model: str
    """What sampled them."""


@dataclass(frozen=True)
class Ranking:
    """One annotator's order of K answers. Example: Ranking(row, ["a", "b", "c"], [2, 1, 2], "anna", origin)"""

    prompt: PromptRow
    answers: list[str]
    ranks: list[int]
    """Rank of each answer, 1 the best; equal ranks are ties."""
    annotator: str
    origin: Origin
    criteria: Mapping[str, list[int]] = field(default_factory=dict)
    """Ranks by criterion, where the annotator gave them; `ranks` then follows from them."""
    all_wrong: bool = False
    """The annotator calls every answer wrong."""


Verdict = Literal["a", "b", "tie", "inconsistent", "set_aside"]
"""Better answer; `inconsistent`: the two orders disagree; `set_aside`: there is no verdict, `reason` says why."""


@dataclass(frozen=True)
class Comparison:
    """One rater's verdict on two answers to a prompt: a row of the preference store.

    Example: Comparison("en-7/0-1/judge", row, "Rest.", "How long?", "b", 2.5, "judge:x", {"ab": [6, 8]}, None, origin)
    """

    id: str
    prompt: PromptRow
    answer_a: str
    answer_b: str
    verdict: Verdict
    margin: float | None
    """How much better, at least 0, in the rater's own units; None where it gives none."""
    rater: str
    """`judge:MODEL`, `human:NAME`, `rubric` or `file`."""
    scores: Mapping[str, Any]
    """What the rater said, by order or criterion."""
    reason: str | None
    origin: Origin


@dataclass(frozen=True)
class Prompt:
    """A prompt row in tokens, made once through the model's chat template.

    Example: Prompt(row, np.array([1, 9690, 198, ...]))
    """

    row: PromptRow
    token_ids_P: np.ndarray


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, in the engine's own tokens: never decoded and tokenised again.

    Example: Rollout(prompt, 0, np.array([500, 28, 2]), np.array([-1.2, -.1, -.3]), "Hello", True, 12)
    """

    prompt: Prompt
    sample_index: int
    """Which of the prompt's answers, from 0."""
    response_ids_T: np.ndarray
    """Sampled tokens, the end token included where there is one."""
    engine_logprobs_T: np.ndarray
    """The engine's log-probabilities of them, at the sampling temperature."""
    text: str
    ended: bool
    """Whether it closed with an end token (False: cut at max_new_tokens)."""
    weight_version: int
    """Version of the weights that sampled it."""


@dataclass(frozen=True)
class RolloutInfo:
    """What the coordinator sees of a rollout. Example: RolloutInfo("en-0007", 41, True, 12, None)"""

    prompt_id: str
    num_tokens: int
    ended: bool
    weight_version: int
    text: str | None
    """Only where the sample log takes it."""


@dataclass(frozen=True)
class SourceScores:
    """One reward source's answer for a batch: a number, or None and the reason, a sample.

    Example: SourceScores("questions", [1.0, None], {1: "TimeoutError: ..."})
    """

    name: str
    raw_B: Sequence[float | None]
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MixedScores:
    """Scores of a batch after normalisation and mixing.

    Example: MixedScores({"q": [1.0]}, {"q": [0.5]}, [0.5], {"q": 0})
    """

    raw: Mapping[str, Sequence[float | None]]
    normalised: Mapping[str, Sequence[float | None]]
    mixed_B: Sequence[float]
    omitted: Mapping[str, int]
    """Samples in which a source was left out, by source."""


@dataclass(frozen=True)
class Sample:
    """One line of samples.jsonl: what was asked, what came, how it scored.

    Example: Sample(12, "train", "en-0007", [...], "Hello", None, {"q": 1.0}, {"q": 0.5}, 0.5, 12)
    """

    step: int
    split: Literal["train", "heldout"]
    prompt_id: str
    messages: list[Message]
    response: str
    reference: str | None
    raw: Mapping[str, float | None]
    normalised: Mapping[str, float | None]
    mixed: float
    num_tokens: int


@dataclass(frozen=True)
class ExamItem:
    """One multiple-choice question. Example: ExamItem("cmb-7", "…首选", {"A": "…", "B": "…"}, "B", exam="CMB")"""

    id: str
    question: str
    """Whole: for a case question with the case before it, so that it can be asked alone."""
    options: Mapping[str, str]
    """Letter -> text, letters A, B, C ... in their order."""
    answer: str
    """Right letters, ascending: "C", or "ACD"."""
    multiple: bool = False
    """Whether more than one letter may be right."""
    type: Literal["single", "multiple", "matched", "case"] = "single"
    """`matched`: questions that share their options; `case`: questions that share a case."""
    exam: str = ""
    year: str = ""
    group: str | None = None
    """What the questions of one matched or case group have in common."""
    language: Literal["en", "zh"] = "zh"
