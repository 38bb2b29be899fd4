"""Comparisons from their sources to tokens: what is used, what is left out and why, what is held out.

Only the verdicts a, b and tie say anything about a reward; inconsistent and set-aside pairs are counted and left out.
Not here: the files' formats (rayrl/data/readers) and how batches are cut (rayrl/learners/preferences.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayrl.config.reward import ComparisonsConfig, RankingLossConfig, RewardConfig
from rayrl.config.sources import SourceConfig
from rayrl.data.chat import encode_prompt, end_token_ids, special_tokens, with_system
from rayrl.data.prompts import Rejected
from rayrl.data.readers import read_comparisons
from rayrl.data.readers.rows import check_share
from rayrl.data.split import conversation_key, split_heldout
from rayrl.errors import UserError
from rayrl.learners.preferences import Pair, PreferenceGroup, PreferenceSet
from rayrl.types import Comparison, Message, Prompt, Rollout


@dataclass(frozen=True)
class RewardData:
    """Everything the stage reads."""

    train: PreferenceSet
    heldout: PreferenceSet
    heldout_comparisons: list[Comparison]
    """In the order of `heldout`'s pairs, group by group."""
    pad_id: int
    counts: dict[str, Any]
    """Comparisons in, used, and dropped by reason: for the manifest."""
    rejected: list[Rejected]


@dataclass(frozen=True)
class _Used:
    """A comparison in tokens."""

    comparison: Comparison
    prompt: Prompt
    first: np.ndarray
    second: np.ndarray
    weight: float = 1.0
    """Of its source in the configuration."""


class AnswerEncoder:
    """Prompt and answer -> tokens as PPO's rollouts have them: the answer up to the token that ends the turn."""

    def __init__(self, tokenizer: Any, generation_config: Any | None, config: ComparisonsConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self.ends = set(end_token_ids(tokenizer, generation_config))
        self._special = special_tokens(tokenizer)

    def encode(self, comparison: Comparison) -> _Used | str:
        """The comparison in tokens, or the reason why it can't be used."""
        prompt = encode_prompt(
            self._tokenizer, comparison.prompt, self._config.max_prompt_tokens, self._config.system_prompt
        )
        if isinstance(prompt, str):
            return prompt.replace("rollout.max_prompt_tokens", "data.max_prompt_tokens")
        first, second = (self.answer(prompt, text) for text in (comparison.answer_a, comparison.answer_b))
        if isinstance(first, str):
            return f"answer a {first}"
        if isinstance(second, str):
            return f"answer b {second}"
        if np.array_equal(first, second):
            return "both answers are the same"
        return _Used(comparison, prompt, first, second)

    def answer(self, prompt: Prompt, text: str) -> np.ndarray | str:
        """int64 [T], the end token included; or what is wrong with the answer."""
        found = next((token for token in self._special if token in text), None)
        if found is not None:
            return f"spells the special token {found!r}"
        answered = [*with_system(prompt.row, self._config.system_prompt), Message(role="assistant", content=text)]
        turn = self._tokenizer.apply_chat_template(answered, tokenize=True, return_dict=False)
        start, ids = turn[: len(prompt.token_ids_P)], turn[len(prompt.token_ids_P) :]
        if start != prompt.token_ids_P.tolist() or not ids:
            return "doesn't come out of the chat template as the prompt and some tokens after it"
        closing = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        if closing + 1 > self._config.max_answer_tokens:
            return f"has {closing + 1} tokens, more than data.max_answer_tokens={self._config.max_answer_tokens}"
        return np.asarray(ids[: closing + 1], dtype=np.int64)


def read_data(config: RewardConfig, tokenizer: Any, model_path: str) -> RewardData:
    """Reads, encodes and splits. Raises UserError where too much is rejected or a side would be empty."""
    data = config.data
    encoder = AnswerEncoder(tokenizer, _generation_config(model_path), data)
    counts: Counter[str] = Counter()
    rejected: list[Rejected] = []
    train = _read(data.sources, data, encoder, config.loss.ties, counts, rejected)
    if data.heldout:
        heldout = _read(data.heldout, data, encoder, True, counts, rejected)
        apart = {conversation_key(used.comparison.prompt) for used in heldout}
    else:
        rows = list({used.comparison.prompt.id: used.comparison.prompt for used in train}.values())
        _, held_rows = split_heldout(rows, data.heldout_fraction)
        apart = {conversation_key(row) for row in held_rows}
        heldout = [used for used in train if conversation_key(used.comparison.prompt) in apart]
    kept = [used for used in train if conversation_key(used.comparison.prompt) not in apart]
    if data.heldout:
        counts["the prompt is held out"] = len(train) - len(kept)
    if not kept or not any(used.comparison.verdict != "tie" for used in heldout):
        side = "to train on" if not kept else "with a better answer to evaluate on"
        raise UserError(f"data.sources and data.heldout leave no comparison {side}; name more of them")
    train_set, _ = _grouped(kept, config.loss)
    heldout_set, heldout_comparisons = _grouped(heldout, config.loss)
    dropped = {reason: number for reason, number in sorted(counts.items()) if reason != "in" and number}
    summary = {
        "in": counts["in"],
        "train": {"prompts": len(train_set.groups), "answers": len(train_set.answers), "pairs": len(kept)},
        "heldout": {"prompts": len(heldout_set.groups), "answers": len(heldout_set.answers), "pairs": len(heldout)},
        "dropped": dropped,
    }
    pad_id = padding_id(tokenizer, encoder)
    return RewardData(train_set, heldout_set, heldout_comparisons, pad_id, summary, rejected)


def padding_id(tokenizer: Any, encoder: AnswerEncoder) -> int:
    """What pads the saved model's batches, set on the tokenizer too: never an end token.

    transformers reads a sequence's score at its last token that isn't padding; with an end token as padding (as many
    chat models have it) that would be the token before the end, which PPO's reward doesn't read.
    """
    ends = encoder.ends
    if tokenizer.pad_token_id in ends:
        ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in special_tokens(tokenizer)]
        free = [i for i in ids if i not in ends and i != tokenizer.bos_token_id]
        if free:
            tokenizer.pad_token_id = free[0]
    return int(tokenizer.pad_token_id)


def _generation_config(model_path: str) -> Any | None:
    from transformers import GenerationConfig

    return (
        GenerationConfig.from_pretrained(model_path) if (Path(model_path) / "generation_config.json").exists() else None
    )


def _read(
    sources: Sequence[SourceConfig],
    config: ComparisonsConfig,
    encoder: AnswerEncoder,
    ties: bool,
    counts: Counter[str],
    rejected: list[Rejected],
) -> list[_Used]:
    """The usable comparisons of the sources. Adds to `counts` and `rejected`."""
    found: list[_Used] = []
    for source in sources:
        read = read_comparisons(source)
        bad = list(read.rejected)
        counts["in"] += len(read.rows) + len(bad)
        counts["the row can't be read"] += len(bad)
        for comparison in read.rows:
            if comparison.verdict not in ("a", "b") and not (comparison.verdict == "tie" and ties):
                counts[f"verdict {comparison.verdict}"] += 1
                continue
            encoded = encoder.encode(comparison)
            if isinstance(encoded, _Used):
                found.append(replace(encoded, weight=source.weight))
            else:
                bad.append(Rejected(comparison.origin.file, comparison.origin.line, encoded))
                counts["prompt or answer can't be used"] += 1
        good = len(read.rows) + len(read.rejected) - len(bad)  # those without a verdict too: they can be read
        check_share(source.path, "comparisons", good, bad, config.max_rejected_fraction, "data.max_rejected_fraction")
        rejected += bad
    return found


def _grouped(found: Sequence[_Used], loss: RankingLossConfig) -> tuple[PreferenceSet, list[Comparison]]:
    """By prompt, each distinct answer once; and the comparisons in the order of the pairs."""
    by_prompt: dict[bytes, list[_Used]] = {}
    for used in found:
        by_prompt.setdefault(used.prompt.token_ids_P.tobytes(), []).append(used)
    answers: list[Rollout] = []
    groups: list[PreferenceGroup] = []
    comparisons: list[Comparison] = []
    for members in by_prompt.values():
        rows: dict[bytes, int] = {}
        pairs = []
        for used in members:
            places = []
            for ids, text in ((used.first, used.comparison.answer_a), (used.second, used.comparison.answer_b)):
                if ids.tobytes() not in rows:
                    rows[ids.tobytes()] = len(answers)
                    answers.append(as_rollout(members[0].prompt, ids, text, len(rows) - 1))
                places.append(rows[ids.tobytes()])
            pairs.append(_pair(used, places, loss))
            comparisons.append(used.comparison)
        groups.append(PreferenceGroup(members[0].comparison.prompt.id, list(rows.values()), pairs))
    return PreferenceSet(answers, groups), comparisons


def _pair(used: _Used, places: list[int], loss: RankingLossConfig) -> Pair:
    comparison = used.comparison
    better, worse = places if comparison.verdict != "b" else places[::-1]
    margin = min(loss.max_margin, loss.margin_scale * (comparison.margin or 0.0))
    return Pair(better, worse, comparison.verdict == "tie", margin, used.weight)


def as_rollout(prompt: Prompt, ids: np.ndarray, text: str, number: int) -> Rollout:
    """An answer as PPO's reward model would get it."""
    return Rollout(prompt, number, ids, np.zeros(len(ids), np.float32), text, True, 0)
