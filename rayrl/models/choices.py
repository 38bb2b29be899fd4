"""How likely a model finds each of several continuations of a prompt: multiple-choice questions by log-probability.

A question is a tree of tokens: the prompt, then its continuations, which share what they begin with (a token that
nothing follows isn't fed: only its probability is asked for). So a prompt is computed once whatever the number and
length of its continuations, and where each is one token, the tree is the prompt alone. Trees lie end to end in one row,
without padding. Questions whose prompts begin alike (few-shot examples, a case) share one pass over that beginning. The
vocabulary product is made only at positions from which something is predicted, by the model's own head, so that models
which scale or cap their logits come out right.

A model that doesn't give by trees what it gives for sequences alone is run on padded rows, one for each way that a
question's continuations take. Not here: the trees and their attention (choice_trees.py); text, tokenizers and which
continuation is chosen (evaluation/exams/prompts.py); Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rayrl.errors import UserError
from rayrl.models.choice_trees import Prefix, Row, Trees, chains, tree, use_trees
from rayrl.models.loading import DType, device, load_causal_lm

Layout = Literal["trees", "rows"]
Group = tuple[list[int], int]
"""Questions, by number, and how many tokens all their prompts begin with."""

PREFIX_TOKENS = 64
"""A beginning that prompts share is computed once if it is as long as this ..."""
PREFIX_SAVES = 512
"""... and saves as many tokens: a pass of its own costs more than a few tokens in another."""
POSITIONS_AT_ONCE = 1024
"""Predicting positions of a batch: each has a row as wide as the vocabulary."""
COLUMNS_AT_ONCE = 32
"""Of them, in float32 at one time: as many as a processor's cache holds."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt and what may follow it. Example: ChoiceQuestion(np.array([1, 9]), [np.array([30]), np.array([31, 7])])

    Neither the prompt nor a continuation may be empty.
    """

    prompt_ids_P: np.ndarray
    continuations: Sequence[np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        """int64 [K]: tokens of each continuation, to divide its sum by."""
        return np.array([len(ids) for ids in self.continuations], dtype=np.int64)

    @property
    def longest(self) -> int:
        """Positions that a model needs for it (`ChoiceScorer.window` says how many it has)."""
        return len(self.prompt_ids_P) + int(self.counts.max()) - 1


class ChoiceScorer:
    """A causal language model that is asked how likely continuations are."""

    def __init__(self, model: str, dtype: DType, pad_id: int, threads: int | None, max_batch_tokens: int) -> None:
        """`model`: a checkpoint's folder or name. `threads`: torch's, in this process; None leaves them as they are.

        `max_batch_tokens`: tokens of a forward pass, padding included; a question with more of them goes alone.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = load_causal_lm(model, dtype).requires_grad_(False).to(device())
        self._pad_id, self._max_batch_tokens = pad_id, max_batch_tokens
        self.window: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        """Positions the model has; None where it has no limit of its own."""
        self.layout: Layout = "trees" if self._use_trees() else "rows"
        """How questions are run: `rows` where the model can't take trees (slower, the same numbers)."""

    def score(self, questions: Sequence[ChoiceQuestion]) -> list[np.ndarray]:
        """float64 [K] a question: the sum of log-probabilities (nats) of each continuation's tokens after the prompt.

        Which questions share a batch moves the numbers by rounding alone. Raises UserError for a question that is
        longer than the model's window.
        """
        self._check(questions)
        return self._score(questions, self.layout) if questions else []

    def _check(self, questions: Sequence[ChoiceQuestion]) -> None:
        for number, question in enumerate(questions):
            if not len(question.prompt_ids_P) or not len(question.continuations) or not question.counts.all():
                raise ValueError(f"question {number} has an empty prompt or continuation, or no continuation")
            if self.window is not None and question.longest > self.window:
                raise UserError(
                    f"question {number} needs {question.longest} positions, the model has {self.window}: leave it out, "
                    "or give fewer examples before it"
                )

    @torch.inference_mode()
    def _score(
        self, questions: Sequence[ChoiceQuestion], layout: Layout, groups: list[Group] | None = None
    ) -> list[np.ndarray]:
        ends = np.cumsum([len(question.continuations) for question in questions])
        begins = [0, *ends[:-1].tolist()]
        sums = np.zeros(ends[-1])
        if layout == "rows":
            groups = [(list(range(len(questions))), 0)]
        for members, shared in groups or prefix_groups([question.prompt_ids_P for question in questions]):
            prefix = self._prefix(questions[members[0]].prompt_ids_P[:shared])
            rows: list[Row] = []
            for i in members:
                asked = questions[i].prompt_ids_P, questions[i].continuations, begins[i]
                rows += chains(*asked) if layout == "rows" else [tree(*asked, shared)]
            for batch in self._batches(rows):
                logprobs_N = self._padded(batch) if layout == "rows" else self._packed(batch, prefix)
                np.add.at(sums, np.concatenate([row.option_N for row in batch]), logprobs_N)
        return np.split(sums, ends[:-1])

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of like lengths, the longest first, that fit a forward pass with their padding."""
        batch: list[Row] = []
        predicting = 0
        for row in sorted(rows, key=lambda row: -len(row.ids_L)):
            full = bool(batch) and len(batch[0].ids_L) * (len(batch) + 1) > self._max_batch_tokens
            if full or (batch and predicting + row.num_predicting > POSITIONS_AT_ONCE):
                yield batch
                batch, predicting = [], 0
            batch.append(row)
            predicting += row.num_predicting
        if batch:
            yield batch

    def _packed(self, rows: list[Row], prefix: Prefix) -> np.ndarray:
        """float32 [N]: log-probabilities of the rows' targets; the rows lie end to end in one."""
        lengths = [len(row.ids_L) for row in rows]
        begins = np.cumsum([0, *lengths[:-1]])
        where, dtype = self._model.device, self._model.dtype
        masks = [None if mask is None else mask.to(where, dtype) for mask in (row.mask(prefix.length) for row in rows)]
        depth_L = torch.from_numpy(np.concatenate([row.depth_L for row in rows])).to(where)
        ids_1L = torch.from_numpy(np.concatenate([row.ids_L for row in rows])).to(where)[None]
        predict_N = np.concatenate([begin + row.predict_N for begin, row in zip(begins, rows, strict=True)])
        layout = {"position_ids": depth_L[None], "trees": Trees(tuple(lengths), masks, depth_L, prefix)}
        return self._logprobs(rows, ids_1L, np.zeros_like(predict_N), predict_N, layout)

    def _padded(self, rows: list[Row]) -> np.ndarray:
        """As `_packed`, each row by itself; padded on the right: under causal attention padding touches nothing."""
        ids_BL = np.full((len(rows), max(len(row.ids_L) for row in rows)), self._pad_id, dtype=np.int64)
        for i, row in enumerate(rows):
            ids_BL[i, : len(row.ids_L)] = row.ids_L
        row_N = np.concatenate([np.full(len(row.predict_N), i) for i, row in enumerate(rows)])
        predict_N = np.concatenate([row.predict_N for row in rows])
        return self._logprobs(rows, torch.from_numpy(ids_BL).to(self._model.device), row_N, predict_N, {})

    def _logprobs(
        self, rows: list[Row], ids_BL: Tensor, row_N: np.ndarray, predict_N: np.ndarray, layout: dict[str, Any]
    ) -> np.ndarray:
        """Target n is predicted from row row_N[n], column predict_N[n]. `layout`: keywords of the forward pass."""
        where = ids_BL.device
        columns_C, place_N = np.unique(predict_N, return_inverse=True)
        keep_C = torch.from_numpy(columns_C).to(where)
        logits_BCV = self._model(input_ids=ids_BL, use_cache=False, logits_to_keep=keep_C, **layout).logits
        if logits_BCV.shape[1] != len(columns_C):  # a model that doesn't know logits_to_keep
            logits_BCV = logits_BCV[:, keep_C]
        total_BC = torch.cat([some.float().logsumexp(-1) for some in logits_BCV.split(COLUMNS_AT_ONCE, dim=1)], dim=1)
        target_N = np.concatenate([row.target_N for row in rows])
        row, place, target = (torch.from_numpy(array).to(where) for array in (row_N, place_N, target_N))
        found: np.ndarray = (logits_BCV[row, place, target].float() - total_BC[row, place]).cpu().numpy()
        return found

    def _prefix(self, ids_F: np.ndarray) -> Prefix:
        """The keys and values of a beginning, by layer; none of an empty one."""
        prefix = Prefix(len(ids_F))
        if len(ids_F):
            ids_1F = torch.from_numpy(ids_F.astype(np.int64)).to(self._model.device)[None]
            depth_F = torch.arange(len(ids_F), device=ids_1F.device)
            trees = Trees((len(ids_F),), [None], depth_F, prefix, record=True)
            self._model.base_model(input_ids=ids_1F, use_cache=False, position_ids=depth_F[None], trees=trees)
        return prefix

    def _use_trees(self) -> bool:
        """Makes the model run trees, if by them it gives what rows give; else it keeps its own attention."""
        rng = np.random.default_rng(0)
        draw = lambda length: rng.integers(0, self._model.config.get_text_config().vocab_size, length)  # noqa: E731
        start = draw(4)
        prompts = [np.concatenate([start, draw(3)]), np.concatenate([start, draw(6)]), draw(5)]
        questions = [ChoiceQuestion(prompt, [draw(4), draw(1), draw(2)]) for prompt in prompts]
        own = self._model.config._attn_implementation
        alone = np.concatenate(self._score(questions, "rows"))
        try:
            use_trees(self._model)
            packed = np.concatenate(self._score(questions, "trees", [([0, 1], len(start)), ([2], 0)]))
        except (ValueError, TypeError, RuntimeError):  # it takes no other attention, or not this keyword
            packed = np.full_like(alone, np.inf)
        limit = (0.05 if self._model.dtype == torch.bfloat16 else 1e-4) * np.abs(alone).max()
        if np.abs(packed - alone).max() <= limit:
            return True
        self._model.set_attn_implementation(own)
        return False


def prefix_groups(prompts: Sequence[np.ndarray]) -> list[Group]:
    """Which prompts are run after a beginning that they share. One level: prompts with the same first PREFIX_TOKENS get
    what all of them begin with, however much more some share.

    Example: 1000 questions after the same five examples -> [([0, ..., 999], tokens of the examples)]
    """
    alike: dict[bytes, list[int]] = {}
    for number, ids in enumerate(prompts):
        start = ids[:PREFIX_TOKENS].astype(np.int64).tobytes() if len(ids) > PREFIX_TOKENS else b""
        alike.setdefault(start, []).append(number)
    groups: list[Group] = []
    alone: list[int] = []
    for start, members in alike.items():
        shared = _common([prompts[i] for i in members]) if start else 0
        if (len(members) - 1) * shared < PREFIX_SAVES:
            alone += members
        else:
            groups.append((members, shared))
    return [*groups, (alone, 0)] if alone else groups


def _common(prompts: list[np.ndarray]) -> int:
    """Tokens with which all begin; each keeps at least its last for itself."""
    shared = min(len(ids) for ids in prompts) - 1
    for ids in prompts[1:]:
        differing = np.flatnonzero(ids[:shared] != prompts[0][:shared])
        shared = int(differing[0]) if len(differing) else shared
    return shared
