"""Which prompts are answered: everything between the sources and the engines.

In this order, so that each drop has one reason: rows that break a rule, prompts that fine-tuning used, exact and near
duplicates (the first stays), a draw by the seed, prompts that the chat template or the window refuses.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayrl.config.sample import SampleConfig
from rayrl.data.chat import encode_prompt
from rayrl.data.dedup import NearDuplicates
from rayrl.data.readers import Rejected, check_read, read_prompt_rows
from rayrl.data.split import conversation_key
from rayrl.data.stage_folder import MANIFEST, STARTED
from rayrl.data.used import USED, answered_prompts, prompt_text, read_used
from rayrl.errors import UserError
from rayrl.types import Prompt, PromptRow

REJECTED = "rejected row"
USED_EXACTLY = "used in fine-tuning"
USED_NEARLY = "nearly the same as one used in fine-tuning"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
NOT_DRAWN = "not drawn"
REFUSED = "refused by the chat template"
TOO_LONG = "longer than rollout.max_prompt_tokens"


@dataclass(frozen=True)
class Item:
    """A prompt with its source and place; `group`: the row it was cut from."""

    row: PromptRow
    source: str
    group: str
    file: str
    line: int


@dataclass(frozen=True)
class Chosen:
    """The prompts to answer, in the order of their sources, and what became of the others."""

    prompts: list[Prompt]
    num_in: int
    """Prompts and bad rows together: what was drawn and dropped comes to as many."""
    dropped: Counter[str]
    rejected: list[Rejected]
    """Every prompt that was dropped with its reason, but those that just weren't drawn."""


def choose_prompts(config: SampleConfig, tokenizer: Any) -> Chosen:
    """Reads the sources and takes out what isn't to be answered. Raises UserError where nothing is left."""
    items, rejected = _read(config)
    num_in, dropped = len(items) + len(rejected), Counter({REJECTED: len(rejected)})

    def drop(item: Item, reason: str, detail: str = "") -> None:
        dropped[reason] += 1
        rejected.append(Rejected(item.file, item.line, f"{item.row.id}: {detail or reason}"))

    fresh = list(_unseen(items, config, drop))
    prompts: dict[str, Prompt] = {}
    for item in _draw_order(fresh, config):
        if len(prompts) == config.num_prompts:
            break
        prompt = encode_prompt(tokenizer, item.row, sys.maxsize, config.system_prompt)
        if isinstance(prompt, str):
            drop(item, REFUSED, prompt)
        elif len(prompt.token_ids_P) > config.rollout.max_prompt_tokens:
            drop(item, TOO_LONG, f"{TOO_LONG}: {len(prompt.token_ids_P)} tokens")
        else:
            prompts[item.row.id] = prompt
    dropped[NOT_DRAWN] = num_in - len(prompts) - dropped.total()
    dropped = +dropped
    if not prompts:
        raise UserError(
            "no prompt is left to answer: "
            + ", ".join(f"{number} {reason}" for reason, number in dropped.items())
            + "; give more prompts, or exclude less"
        )
    in_order = [prompts[item.row.id] for item in fresh if item.row.id in prompts]
    return Chosen(in_order, num_in, dropped, sorted(rejected, key=lambda bad: (bad.file, bad.line)))


def prompts_of(row: PromptRow) -> list[PromptRow]:
    """The prompt at each of the user's turns that is answered, the row itself last.

    The answer is the reference. `missing_info` speaks of the last turn only and stays with it.
    """
    fields = {key: value for key, value in row.fields.items() if key != "missing_info"}
    earlier = [
        PromptRow(f"{row.id}#{number}", messages, row.messages[len(messages)]["content"], fields)
        for number, messages in enumerate(answered_prompts(row.messages), start=1)
    ]
    return [*earlier, row]


def _read(config: SampleConfig) -> tuple[list[Item], list[Rejected]]:
    items: dict[str, Item] = {}
    rejected: list[Rejected] = []
    for source in config.prompts:
        read = read_prompt_rows(source)
        check_read(read, config.max_rejected_fraction)
        rejected += read.rejected
        for row, origin in zip(read.rows, read.origins, strict=True):
            whole = row if row.id not in items else replace(row, id=f"{source.name}/{row.id}")
            for one in prompts_of(whole) if config.turns == "all" else [whole]:
                if one.id in items:
                    raise UserError(
                        f"prompts {source.name!r}: the id {one.id!r} is already taken by {items[one.id].file}, "
                        f"line {items[one.id].line}"
                    )
                items[one.id] = Item(one, source.name, whole.id, origin.file, origin.line)
    return list(items.values()), rejected


def _unseen(items: Iterable[Item], config: SampleConfig, drop: Any) -> Iterator[Item]:
    """Items that neither fine-tuning used nor an earlier item says, in order."""
    threshold = config.near_duplicates
    used_keys, used_near = _used(config, threshold)
    keys: dict[str, str] = {}
    near = NearDuplicates(threshold) if threshold is not None else None
    for item in items:
        key, text = conversation_key(item.row), prompt_text(item.row.messages)
        if key in used_keys:
            drop(item, USED_EXACTLY)
        elif key in keys:
            drop(item, DUPLICATE, f"{DUPLICATE} of {keys[key]}")
        elif used_near is not None and (match := used_near.find(text)):
            drop(item, USED_NEARLY, f"{USED_NEARLY} ({match.key}, similarity {match.similarity:.2f})")
        elif near is not None and (match := near.find(text, item.group)):
            drop(item, NEAR_DUPLICATE, f"{NEAR_DUPLICATE} of {match.key} (similarity {match.similarity:.2f})")
        else:
            keys[key] = item.row.id
            if near is not None:
                near.add(item.row.id, text, item.group)
            yield item


def _used(config: SampleConfig, threshold: float | None) -> tuple[set[str], NearDuplicates | None]:
    """Keys of what fine-tuning used, and its texts to compare with."""
    keys: set[str] = set()
    near = NearDuplicates(threshold) if threshold is not None else None
    for source in config.exclude:
        path = Path(source.path).expanduser()
        if path.name == USED or any((path / name).is_file() for name in (MANIFEST, STARTED, USED)):
            if not all((path / name).is_file() for name in (MANIFEST, USED)) and path.name != USED:
                raise UserError(f"exclude {source.name!r}: {path} isn't the folder of a finished `rayrl sft`")
            for key, text in read_used(path).items():
                if near is not None and key not in keys:
                    near.add(source.name, text)
                keys.add(key)
            continue
        read = read_prompt_rows(source)
        check_read(read, config.max_rejected_fraction)  # what can't be read would exclude nothing, without a word
        for row in read.rows:
            for one in prompts_of(row):
                key = conversation_key(one)
                if near is not None and key not in keys:
                    near.add(f"{source.name}: {one.id}", prompt_text(one.messages))
                keys.add(key)
    return keys, near


def _draw_order(items: Sequence[Item], config: SampleConfig) -> list[Item]:
    """Sources in turn, as often as their weights say; within a source by a hash of seed and id.

    The first n prompts of the order are a draw of n: a longer draw holds a shorter one.
    """

    def number(item: Item) -> str:
        return hashlib.sha256(f"{config.seed}:{item.row.id}".encode()).hexdigest()

    turns: list[tuple[float, Item]] = []
    for source in config.prompts:
        of_source = sorted((item for item in items if item.source == source.name), key=number)
        turns += [((rank + 0.5) / source.weight, item) for rank, item in enumerate(of_source)]
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]
