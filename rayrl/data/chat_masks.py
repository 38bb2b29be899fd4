"""Conversations and documents as training tokens: which tokens there are, and which of them the loss counts.

The loss counts what the assistant says: from where a prompt with the generation tag ends to the token that ends the
turn. Every such prompt is rendered through the model's own chat template and must be, token by token, how the whole
conversation begins, so that a span is what an engine would have generated after the same history. What a template does
inside an answer (some write thoughts only in the last) is learned as it stands in the whole.
Conversations that don't fit are cut at whole turns. Not here: packing (packing.py) and sources (readers/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jinja2.exceptions import TemplateError

from rayrl.data.chat import end_token_ids, special_tokens
from rayrl.errors import UserError
from rayrl.types import Message


@dataclass(frozen=True)
class Encoded:
    """Tokens [L] of a row, which of them the loss counts, and how many of the assistant's turns were cut off."""

    ids: np.ndarray
    mask: np.ndarray
    turns_cut: int = 0


class ConversationEncoder:
    """Messages -> tokens and loss mask, by one tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        *,
        long: Literal["cut", "reject"] = "cut",
        system_prompt: str | None = None,
    ) -> None:
        self._tokenizer, self._max_tokens, self._long, self._system = tokenizer, max_tokens, long, system_prompt
        self._ends = set(end_token_ids(tokenizer))
        self._special = special_tokens(tokenizer)
        self._check_end()

    def encode(self, messages: Sequence[Message]) -> Encoded | str:
        """Tokens and mask, or the reason why the conversation can't be used."""
        for number, message in enumerate(messages, start=1):
            found = next((token for token in self._special if token in message["content"]), None)
            if found is not None:
                return f"message {number} spells the special token {found!r}"
        turns = list(messages)
        if self._system is not None and turns[0]["role"] != "system":
            turns.insert(0, Message(role="system", content=self._system))
        answers = [i for i, message in enumerate(turns) if message["role"] == "assistant"]
        if not answers:
            return "the conversation has no assistant's turn"
        try:
            spans, ids = self._spans(turns, answers)
        except TemplateError as error:  # some templates insist on alternating turns or know no system role
            return f"the chat template refuses the conversation: {error}"
        except _NotPrefix as error:
            return str(error)
        return self._fit(ids, spans)

    def _check_end(self) -> None:
        """A model that never sees its answers end would never end one."""
        turns = [Message(role="user", content="?"), Message(role="assistant", content="!")]
        try:
            spans, ids = self._spans(turns, [1])
        except _NotPrefix as error:
            raise UserError(f"{error}: a model can't be trained on it; set model.chat_template") from None
        if ids[spans[0][1] - 1] not in self._ends:
            raise UserError(
                "the chat template doesn't close the assistant's turn with an end token that the tokenizer knows: "
                "write {{ eos_token }} after it in model.chat_template, or use model.chat_template=plain"
            )
        self._check_middle(turns)

    def _check_middle(self, round_: list[Message]) -> None:
        """An answer must end before the next question begins, or the loss would count the patient's words."""
        digits = ([*round_, Message(role="user", content=digit), round_[1]] for digit in "12")
        try:
            (spans, one), (_, other) = (self._spans(turns, [1, 3]) for turns in digits)
        except (TemplateError, _NotPrefix):  # longer conversations are refused one by one
            return
        question = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        if spans[0][1] > question:
            raise UserError(
                "the chat template closes the last of several answers only: write {{ eos_token }} after each in "
                "model.chat_template, or use model.chat_template=plain"
            )

    def _spans(self, turns: list[Message], answers: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """(begin, end) in tokens of each answer, its end token included, and the whole conversation's tokens."""
        ids = self._ids(turns[: answers[-1] + 1])
        spans = []
        for number, i in enumerate(answers, start=1):
            before = self._ids(turns[:i], generation=True)
            if ids[: len(before)] != before:
                raise _NotPrefix(f"the chat template renders what comes before answer {number} in another way later")
            end = next((j + 1 for j in range(len(before), len(ids)) if ids[j] in self._ends), len(ids))
            spans.append((len(before), end))
        return spans, ids

    def _ids(self, turns: list[Message], generation: bool = False) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=generation, tokenize=True, return_dict=False
            )
        )

    def _fit(self, ids: list[int], spans: list[tuple[int, int]]) -> Encoded | str:
        kept = [(begin, end) for begin, end in spans if end <= self._max_tokens]
        if not kept or (len(kept) < len(spans) and self._long == "reject"):
            what = "the conversation has" if kept else "up to its first answer the conversation has"
            length = spans[-1][1] if kept else spans[0][1]
            return f"{what} {length} tokens, more than data.max_tokens={self._max_tokens}"
        length = kept[-1][1]  # what the template writes after the last end token is never sampled
        mask = np.zeros(length, dtype=bool)
        for begin, end in kept:
            mask[begin:end] = True
        return Encoded(np.asarray(ids[:length], dtype=np.int32), mask, len(spans) - len(kept))


class DocumentEncoder:
    """Plain text -> rows of at most `max_tokens`, every token but a row's first counted by the loss."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._special = special_tokens(tokenizer)

    def encode(self, text: str) -> list[Encoded] | str:
        """The document with an end token, cut into parts; or the reason why it can't be used."""
        found = next((token for token in self._special if token in text), None)
        if found is not None:
            return f"the text spells the special token {found!r}"
        ids = [*self._tokenizer(text)["input_ids"]]
        if not ids or ids[-1] != self._tokenizer.eos_token_id:
            ids.append(self._tokenizer.eos_token_id)
        parts = [ids[i : i + self._max_tokens] for i in range(0, len(ids), self._max_tokens)]
        # A part of one token has nothing to predict.
        return [Encoded(np.asarray(part, dtype=np.int32), _all_but_first(len(part))) for part in parts if len(part) > 1]


class _NotPrefix(Exception):
    """What the template does that keeps a turn's tokens from being found."""


def _all_but_first(length: int) -> np.ndarray:
    mask = np.ones(length, dtype=bool)
    mask[0] = False
    return mask
