"""Held-out prompts by stable hashes of their ids: the same on every machine, and in every later version of a data set.

Whether a prompt is held out depends on its id and on its exact duplicates alone, so adding prompts moves none from one
side to the other (unless a new one is a duplicate). Not here: near-duplicates; they are the corpus stages' work.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from rayrl.errors import UserError
from rayrl.types import PromptRow


def split_heldout(rows: Sequence[PromptRow], fraction: float) -> tuple[list[PromptRow], list[PromptRow]]:
    """(train, heldout), each in the order of `rows`; about `fraction` (above 0, below 1) of them are held out.

    Rows with the same conversation go to the side of the one whose id sorts first. Raises UserError where a side would
    be empty.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        same[conversation_key(row)].append(row.id)
    held = {key for key, ids in same.items() if _unit(f"heldout:{min(ids)}") < fraction}
    train = [row for row in rows if conversation_key(row) not in held]
    heldout = [row for row in rows if conversation_key(row) in held]
    if not train or not heldout:
        empty = "training" if not train else "held-out"
        raise UserError(
            f"Splitting {len(rows)} prompts with data.heldout_fraction={fraction} leaves no {empty} prompt: "
            "use more prompts, another fraction, or name a file in data.heldout."
        )
    return train, heldout


def check_disjoint(train: Sequence[PromptRow], heldout: Sequence[PromptRow]) -> None:
    """Raise UserError where a held-out conversation is also trained on."""
    trained = {conversation_key(row): row.id for row in train}
    shared = [(row.id, trained[conversation_key(row)]) for row in heldout if conversation_key(row) in trained]
    if shared:
        raise UserError(
            f"{len(shared)} held-out prompts are also training prompts, so scores on them would mislead: "
            f"take them out of one file (first: {shared[0][0]!r} is {shared[0][1]!r})."
        )


def choose(rows: Sequence[PromptRow], n: int) -> list[PromptRow]:
    """The first `n` rows in the order of a hash of their ids (all, where there are fewer)."""
    return sorted(rows, key=lambda row: (_digest(f"choose:{row.id}"), row.id))[:n]


def conversation_key(row: PromptRow) -> str:
    """Hash of what patient and doctor say, blind to case, width and spacing; system messages don't count."""
    turns = ((turn["role"], turn["content"]) for turn in row.messages if turn["role"] != "system")
    words = (f"{role}:{' '.join(unicodedata.normalize('NFKC', content).casefold().split())}" for role, content in turns)
    return _digest("\x00".join(words))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _unit(text: str) -> float:
    """A number from 0 to below 1, uniform over texts."""
    return int(_digest(text)[:13], 16) / 16**13  # 52 bits: exact in a float, never rounded up to 1
