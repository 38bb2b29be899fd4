"""General-knowledge questions that a specialised model should still answer: a run that loses them is collapsing.

DoctorGLM (arXiv 2304.01097, Table 7) asks its checkpoints such questions and sees them collapse with more training.
Here it is a number: the share of questions whose right answer has a higher mean log-probability a token than every
wrong one, after the question as the user's turn (without a chat template: after "Question: ... Answer:").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field, ValidationError

from rayrl.config.sft import ProbeConfig
from rayrl.config.strict import Strict
from rayrl.data.chat_masks import ConversationEncoder
from rayrl.data.packing import pack
from rayrl.data.prompts import BadLine, jsonl_values
from rayrl.errors import UserError
from rayrl.types import Message

BUILTIN = Path(__file__).parent.parent / "assets" / "general_probe.jsonl"
MAX_TOKENS = 512

Option = tuple[np.ndarray, np.ndarray]
"""Tokens of question and answer [L], and which of them are the answer [L]."""


class Question(Strict):
    """One row of a probe's file."""

    question: str = Field(min_length=1)
    right: str = Field(min_length=1)
    wrong: list[str] = Field(min_length=1)


class Scorer(Protocol):
    """What asks the model (learners/sft.py)."""

    def sums(self, rows: list[list[Option]], groups: list[list[int]], num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """(sum of log-probabilities, counted tokens) by group."""
        ...


@dataclass(frozen=True)
class Probe:
    """Questions in tokens; each one's right answer comes first."""

    questions: list[list[Option]]

    @classmethod
    def load(cls, config: ProbeConfig, tokenizer: Any, chat: bool) -> Probe | None:
        """The configured questions; None where there are to be none. Raises UserError for a bad file."""
        if config.questions is None:
            return None
        path = BUILTIN if config.questions == "general" else Path(config.questions).expanduser()
        encode = _chat_encoder(tokenizer) if chat else _plain_encoder(tokenizer)
        questions = [
            [encode(asked.question, answer) for answer in (asked.right, *asked.wrong)] for asked in read_questions(path)
        ]
        return cls(questions)

    def accuracy(self, scorer: Scorer) -> float:
        """Share of questions answered right, from 0 to 1; a tie is no right answer."""
        options = [option for question in self.questions for option in question]
        rows = pack([len(ids) for ids, _ in options], MAX_TOKENS)
        sums, counts = scorer.sums([[options[i] for i in row] for row in rows], rows, len(options))
        ends = np.cumsum([len(question) for question in self.questions])[:-1]
        right = [scores[0] > scores[1:].max() for scores in np.split(sums / counts, ends)]
        return float(np.mean(right))


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file. Raises UserError where it isn't there, is empty or has a bad line."""
    if not path.is_file():
        raise UserError(f"probe.questions: no file {path} (the built-in set is called general)")
    questions = []
    for line, value in jsonl_values(path):
        try:
            questions.append(Question.model_validate(value))
        except ValidationError as error:
            reason = value if isinstance(value, BadLine) else error.errors()[0]["msg"]
            raise UserError(
                f"probe.questions: {path}, line {line}: {reason}; expected question, right, wrong"
            ) from None
    if not questions:
        raise UserError(f"probe.questions: {path} is empty")
    return questions


def _chat_encoder(tokenizer: Any) -> Any:
    encoder = ConversationEncoder(tokenizer, MAX_TOKENS, long="reject")

    def encode(question: str, answer: str) -> Option:
        encoded = encoder.encode([Message(role="user", content=question), Message(role="assistant", content=answer)])
        if isinstance(encoded, str):
            raise UserError(f"probe.questions: {encoded}")
        mask = encoded.mask.copy()
        mask[-1] = False  # how an answer ends says nothing about whether it is right
        return encoded.ids, mask

    return encode


def _plain_encoder(tokenizer: Any) -> Any:
    def encode(question: str, answer: str) -> Option:
        start = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        ids = tokenizer(f"Question: {question}\nAnswer: {answer}")["input_ids"]
        same = next((i for i, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), len(start))
        return np.asarray(ids, dtype=np.int32), np.arange(len(ids)) >= same

    return encode
