"""The records that flow through rayrl, in the order in which data flows.

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
