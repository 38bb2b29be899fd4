"""Data as `rayrl sft` leaves it on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayrl.data.chat_masks import Encoded
from rayrl.data.examples import Examples, ExamplesWriter
from rayrl.data.used import USED, UsedPrompts
from rayrl.types import Conversation


def write_examples(folder: Path, by_source: Sequence[Sequence[Encoded]]) -> Examples:
    """Examples of each source, in order, from disk."""
    with ExamplesWriter(folder) as writer:
        for source, examples in enumerate(by_source):
            for example in examples:
                writer.add(source, example)
    return Examples.load(folder)


def write_used(folder: Path, *conversations: Conversation) -> None:
    """used.jsonl of the prompts that are answered in them."""
    used = UsedPrompts(folder / "keys")
    for one in conversations:
        used.add(one)
    used.write(folder / USED)
