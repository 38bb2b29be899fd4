"""Exams in `rayrl eval`: what is asked, and which letters the model chose, from its text or from log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrl.config.eval import EvalConfig, EvalModelConfig
from rayrl.config.parts import RayConfig, RolloutConfig
from rayrl.data.chat import load_tokenizer, special_tokens
from rayrl.data.stage_folder import fingerprint
from rayrl.evaluation.answers import Answer, AnswerStore, question_key
from rayrl.evaluation.exams.extract import extract
from rayrl.evaluation.exams.numbers import ExamAnswer
from rayrl.evaluation.exams.prompts import ChoiceText, chat_choice, choose, encode, free_answer, plain_choice
from rayrl.models.builtin import resolve_model
from rayrl.models.choices import ChoiceQuestion, ChoiceScorer
from rayrl.stages.eval_sets import ExamSet, examples_for
from rayrl.stages.pool import answers
from rayrl.stages.sample_engines import engine_pool
from rayrl.types import ExamItem, Message

_TASK = pa.schema([("number", pa.int64()), ("texts", pa.string())])
_AT_ONCE = 512
"""Questions a task: enough that lengths can be sorted, few enough that a cut run loses little."""
_MAX_BATCH_TOKENS = 1024
UNFIT = "longer than the model's window, or an option's token is one with the question's last"


def exam_messages(exam: ExamSet, item: ExamItem) -> list[Message]:
    """The question as a conversation to answer freely."""
    return free_answer(item, examples_for(exam, item))


def from_text(exam: ExamSet, item: ExamItem, model: str, answer: Answer | None) -> ExamAnswer:
    """The choice that an answer's text makes."""
    if answer is None or answer.text is None:
        return ExamAnswer(exam.name, item, model, None, answered=False)
    return ExamAnswer(exam.name, item, model, extract(answer.text, item.options, item.multiple), text=answer.text)


def by_logprobs(config: EvalConfig, model: EvalModelConfig, exam: ExamSet) -> list[ExamAnswer]:
    """A checkpoint's choices on an exam by log-probability. Ray must be connected."""
    assert model.model is not None and exam.config.mode != "answer"
    path, rollout = resolve_model(model.model), config.rollout_of(model)
    tokenizer = load_tokenizer(
        path, model.chat_template, section="models", needs_template=exam.config.chat, add_pad_token=True
    )
    settings = {
        "model": fingerprint(path),
        "chat_template": model.chat_template,
        "dtype": rollout.dtype,
        "logprobs": exam.config.mode,
    }
    texts = [_text(exam, item, tokenizer, config.system_of(model)) for item in exam.items]
    forbidden = special_tokens(tokenizer)
    asked = [
        None if any(token in item.question or token in "".join(item.options.values()) for token in forbidden) else text
        for item, text in zip(exam.items, texts, strict=True)
    ]
    keys = [question_key(asdict(text)) for text in texts]
    with AnswerStore(Path(config.answers).expanduser(), model.name, settings) as store:
        missing = set(store.missing(key for key, text in zip(keys, asked, strict=True) if text is not None))
        todo = {key: text for key, text in zip(keys, texts, strict=True) if key in missing}
        for scored in _score(path, int(tokenizer.pad_token_id), list(todo.items()), rollout, model, config.ray):
            store.add(scored)
        return [
            _chosen(exam, item, text, model.name, store.get(key))
            for item, text, key in zip(exam.items, texts, keys, strict=True)
        ]


def _text(exam: ExamSet, item: ExamItem, tokenizer: Any, system_prompt: str | None) -> ChoiceText:
    mode, examples = exam.config.mode, examples_for(exam, item)
    assert mode != "answer"
    if exam.config.chat:
        return chat_choice(item, tokenizer, examples, mode, system_prompt)
    return plain_choice(item, examples, mode)


def _chosen(exam: ExamSet, item: ExamItem, text: ChoiceText, model: str, answer: Answer | None) -> ExamAnswer:
    if answer is None or answer.logprobs is None:
        return ExamAnswer(exam.name, item, model, None, answered=False)
    # Texts differ in length, and the longer is the less likely; letters are compared as they are.
    best = choose(np.array(answer.logprobs), text.lengths("characters"), exam.config.mode == "texts")
    return ExamAnswer(exam.name, item, model, text.answers[best])


def _score(
    path: str,
    pad_id: int,
    todo: Sequence[tuple[str, ChoiceText]],
    rollout: RolloutConfig,
    model: EvalModelConfig,
    ray: RayConfig,
) -> Iterator[list[Answer]]:
    """Log-probabilities of the questions' options, a task at a time."""
    if not todo:
        return
    tasks, keys = {}, {}
    for number, start in enumerate(range(0, len(todo), _AT_ONCE)):
        part = todo[start : start + _AT_ONCE]
        texts = json.dumps([asdict(text) for _, text in part])
        tasks[number] = pa.Table.from_pylist([{"number": number, "texts": texts}], schema=_TASK)
        keys[number] = [key for key, _ in part]
    pool = engine_pool(rollout, ray.start_timeout_s, "a scorer")
    arguments = (path, pad_id, rollout, model.chat_template)
    for answer in answers(tasks, ChoiceWorker, arguments, pool):
        yield [
            Answer(key, None, logprobs=logprobs or None, reason=None if logprobs else UNFIT)
            for key, logprobs in zip(keys[answer["number"]], answer["logprobs"], strict=True)
        ]


class ChoiceWorker:
    """A model that says how likely options are: what Ray Data calls with a batch of questions in its actor."""

    def __init__(self, path: str, pad_id: int, rollout: RolloutConfig, chat_template: str | None) -> None:
        self._tokenizer = load_tokenizer(
            path, chat_template, section="models", needs_template=False, add_pad_token=True
        )
        self._scorer = ChoiceScorer(path, rollout.dtype, pad_id, rollout.threads, _MAX_BATCH_TOKENS)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Sums of log-probabilities by question; an empty list where one is longer than the model's window."""
        (row,) = table.to_pylist()
        questions = [self._encoded(ChoiceText(**text)) for text in json.loads(row["texts"])]
        fitting = {i: question for i, question in enumerate(questions) if question is not None}
        found: list[list[float]] = [[] for _ in questions]
        if fitting:
            for i, logprobs_K in zip(fitting, self._scorer.score(list(fitting.values())), strict=True):
                found[i] = logprobs_K.tolist()
        return pa.table({"number": [row["number"]], "logprobs": [found]})

    def _encoded(self, text: ChoiceText) -> ChoiceQuestion | None:
        """None where the question doesn't fit the window, or an option's token is one with the question's last."""
        try:
            question = encode(self._tokenizer, text)
        except ValueError:
            return None
        window = self._scorer.window
        return question if window is None or question.longest <= window else None
