"""How a multiple-choice question is put to a model, and which answer its log-probabilities choose.

Three ways, each in the question's language:

- `free_answer`: a conversation; the model writes, and somebody else reads the letters out of its answer.
- `plain_choice`: text to be continued, in the style of MMLU's own evaluation: the question, options as "A. text", then
  "Answer:" (Chinese: "答案："), which " A" (Chinese, where no space follows a colon: "A") may continue. Examples come
  before it, answered, with a blank line after each.
- `chat_choice`: the same in the model's chat template: the question is the user's turn, examples are earlier turns, the
  letter is the beginning of the assistant's.

In mode `texts` the options' texts continue a question that is put without options (as in ARC); they differ in length,
so `choose` should then divide by it: by characters (lm-evaluation-harness's acc_norm), bytes (which doesn't depend on
the script) or tokens.

Where several options may be right, no answer follows from options one by one: every combination of letters (31 of five
options) is a continuation, "ACD", and the likeliest is the answer; in mode `texts`, the texts with semicolons between
them. Each ends with what would end the answer (a line break, or the token that closes the assistant's turn), since "A"
alone begins "ACD" too and so is always the likelier.

Tokens are split where lm-evaluation-harness splits them (`encode`), so that predictions can be compared with its own.
Not here: the model (models/choices.py), reading answers, what a score means. A text that spells a special token is for
the caller to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayrl.data.chat import turn_end
from rayrl.types import ExamItem, Message

if TYPE_CHECKING:  # brings torch, which text doesn't need
    from rayrl.models.choices import ChoiceQuestion

Mode = Literal["letters", "texts"]
Unit = Literal["tokens", "characters", "bytes"]

_KIND = {
    "zh": {"single": "单选题", "multiple": "多选题", "matched": "配伍题", "case": "病例题"},
    "en": {"single": "single choice", "multiple": "multiple choice", "matched": "matching", "case": "case"},
}
_RIGHT = {
    "zh": {False: "只有一个选项正确", True: "正确选项可能不止一个"},
    "en": {False: "exactly one option is right", True: "more than one option may be right"},
}
_ASK = {
    "zh": {False: "请回答下面的选择题，并写明正确选项的字母。", True: "请回答下面的选择题，并写明所有正确选项的字母。"},
    "en": {
        False: "Please answer this multiple-choice question and say the letter of the right option.",
        True: "Please answer this multiple-choice question and say the letters of all right options.",
    },
}
_ONLY = {
    "zh": {False: "请只写正确选项的字母。", True: "请只写所有正确选项的字母，按顺序连写，例如“ACD”。"},
    "en": {
        False: "Write the letter of the right option and nothing else.",
        True: 'Write the letters of all right options and nothing else, in order and together, such as "ACD".',
    },
}
_QUESTION = {"zh": "题目：", "en": "Question: "}
_ANSWER = {"zh": "答案：", "en": "Answer:"}
_SPACE = {"zh": "", "en": " "}
_AND = {"zh": "；", "en": "; "}


@dataclass(frozen=True)
class ChoiceText:
    """A question as text to be continued. Example: ChoiceText("...\\nAnswer:", " ", ("A", "B"), ("A", "B"), True)"""

    context: str
    space: str
    """Between the context and whatever continues it."""
    texts: tuple[str, ...]
    """What may continue it."""
    answers: tuple[str, ...]
    """The letters that each of them means, ascending: "C", "ACD"."""
    special_tokens: bool
    """Whether the tokenizer puts its own before the context; a chat template has written them."""

    def lengths(self, unit: Literal["characters", "bytes"]) -> np.ndarray:
        """int64 [K]: of each text, without the space before it. (Tokens: `ChoiceQuestion.counts`.)"""
        return np.array([len(text if unit == "characters" else text.encode()) for text in self.texts], dtype=np.int64)


def free_answer(item: ExamItem, examples: Sequence[ExamItem] = ()) -> list[Message]:
    """The question as a conversation that ends with the user's turn; examples are turns before it.

    Says what type the question is and how many options may be right.
    """
    messages: list[Message] = []
    for example in examples:
        messages.append(Message(role="user", content=_asked(example)))
        colon = _ANSWER[example.language] + _SPACE[example.language]
        messages.append(Message(role="assistant", content=colon + example.answer))
    return [*messages, Message(role="user", content=_asked(item))]


def _asked(item: ExamItem) -> str:
    words, several = item.language, item.multiple
    kind = f"{_KIND[words][item.type]}，{_RIGHT[words][several]}"
    head = f"【{kind}】" if words == "zh" else f"[{_KIND[words][item.type].capitalize()}, {_RIGHT[words][several]}] "
    return f"{_ASK[words][several]}\n\n{head}{_with_options(item)}"


def plain_choice(item: ExamItem, examples: Sequence[ExamItem] = (), mode: Mode = "letters") -> ChoiceText:
    """The question as plain text, answered examples before it."""
    answered = [f"{_put(one, mode)}{_SPACE[one.language]}{_right(one, mode)}\n\n" for one in examples]
    context = "".join(answered) + _put(item, mode)
    return ChoiceText(context, _SPACE[item.language], *_options(item, mode, "\n"), True)


def _put(item: ExamItem, mode: Mode) -> str:
    question = _with_options(item) if mode == "letters" else _QUESTION[item.language] + item.question.strip()
    return f"{question}\n{_ANSWER[item.language]}"


def chat_choice(
    item: ExamItem,
    tokenizer: Any,
    examples: Sequence[ExamItem] = (),
    mode: Mode = "letters",
    system_prompt: str | None = None,
) -> ChoiceText:
    """The question through the tokenizer's chat template, up to where the assistant's turn begins."""
    messages = [] if system_prompt is None else [Message(role="system", content=system_prompt)]
    for example in examples:
        messages.append(Message(role="user", content=_turn(example, mode)))
        messages.append(Message(role="assistant", content=_right(example, mode)))
    messages.append(Message(role="user", content=_turn(item, mode)))
    context = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return ChoiceText(str(context), "", *_options(item, mode, turn_end(tokenizer)), False)


def _turn(item: ExamItem, mode: Mode) -> str:
    if mode == "texts":
        return item.question.strip()
    return f"{_with_options(item)}\n\n{_ONLY[item.language][item.multiple]}"


def _with_options(item: ExamItem) -> str:
    return "\n".join([item.question.strip(), *(f"{letter}. {text.strip()}" for letter, text in item.options.items())])


def _options(item: ExamItem, mode: Mode, end: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(texts, the letters that each means). `end`: behind the texts where several options may be right."""
    letters = tuple(item.options)
    sizes = range(1, len(letters) + 1) if item.multiple else (1,)
    answers = tuple("".join(chosen) for size in sizes for chosen in combinations(letters, size))
    return tuple(_text(item, answer, mode) + end * item.multiple for answer in answers), answers


def _right(item: ExamItem, mode: Mode) -> str:
    return _text(item, item.answer, mode)


def _text(item: ExamItem, answer: str, mode: Mode) -> str:
    if mode == "letters":
        return answer
    return _AND[item.language].join(item.options[letter].strip() for letter in answer)


def encode(tokenizer: Any, text: ChoiceText) -> ChoiceQuestion:
    """The text in tokens, split as lm-evaluation-harness does.

    White space at the context's end belongs to the continuations. A continuation's tokens are those of context and
    continuation together, less as many as the context has alone: a space before a word stays in the word's token.
    Raises ValueError where nothing is left of a continuation (it merged with the context).
    """
    from rayrl.models.choices import ChoiceQuestion

    context = text.context.rstrip()
    space = text.context[len(context) :] + text.space
    wholes = [context + space + one for one in text.texts]
    prompt, *encoded = tokenizer([context, *wholes], add_special_tokens=text.special_tokens)["input_ids"]
    continuations = [np.asarray(ids[len(prompt) :], dtype=np.int64) for ids in encoded]
    merged = next((one for one, ids in zip(text.texts, continuations, strict=True) if not len(ids)), None)
    if merged is not None:
        raise ValueError(f"no token of {merged!r} is left after {context[-20:]!r}")
    return ChoiceQuestion(np.asarray(prompt, dtype=np.int64), continuations)


def choose(logprobs_K: np.ndarray, counts_K: np.ndarray, normalise: bool) -> int:
    """Which continuation is likeliest, by the sum of its log-probabilities, or by the sum over its length where
    `normalise`. The first of equals.
    """
    return int(np.argmax(logprobs_K / counts_K if normalise else logprobs_K))
