"""Which prompts a model was fine-tuned on, so that later stages can take others: `used.jsonl`, {"key": ...} a row.

A key is split.conversation_key of a conversation up to a patient's turn that the doctor answers. Exact only: a near
copy has another key; name its source where near copies must be left out too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from rayrl.data.split import conversation_key
from rayrl.errors import UserError
from rayrl.types import Conversation, Message, PromptRow

USED = "used.jsonl"
_DIGITS = 2
"""Of a key, that name its file: 256 of them."""


def answered_prompts(messages: Sequence[Message]) -> list[list[Message]]:
    """Every beginning of a conversation that ends with a user's turn which the assistant answers."""
    return [
        list(messages[:length])
        for length, (turn, answer) in enumerate(pairwise(messages), start=1)
        if turn["role"] == "user" and answer["role"] == "assistant"
    ]


def prompt_key(messages: Sequence[Message]) -> str:
    """The key of a prompt, blind to case, width, spacing and system messages."""
    return conversation_key(PromptRow("", list(messages)))


def prompt_text(messages: Sequence[Message]) -> str:
    """What is compared for near-duplicates: all turns but the system's."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")


class UsedPrompts:
    """Every prompt answered in conversations, each once. In files by their keys, of which one is in memory."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for those files, of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def add(self, conversation: Conversation) -> None:
        """The prompts of another conversation."""
        for prompt in answered_prompts(conversation.messages):
            key = prompt_key(prompt)
            name = key[:_DIGITS]
            if name not in self._files:
                self._files[name] = (self._folder / name).open("w", encoding="utf-8")
            self._files[name].write(json.dumps({"key": key, "text": prompt_text(prompt)}, ensure_ascii=False) + "\n")

    def write(self, target: Path) -> None:
        """Writes used.jsonl as `target`, sorted by keys, and removes the files."""
        with target.open("w", encoding="utf-8") as out:
            for name in sorted(self._files):
                self._files[name].close()
                with (self._folder / name).open(encoding="utf-8", newline="\n") as lines:
                    rows = {json.loads(line)["key"]: line for line in lines}
                out.writelines(rows[key] for key in sorted(rows))
        shutil.rmtree(self._folder)


def read_used(path: str | Path) -> dict[str, str]:
    """Key -> text, of a stage's folder or such a file. Raises UserError where there are none to read."""
    file = Path(path) / USED if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{path} has no {USED}: name the folder of a finished `rayrl sft`, or the data it trained on")
    texts: dict[str, str] = {}
    with file.open(encoding="utf-8", newline="\n") as lines:  # other line separators may stand in a text
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                texts[row["key"]] = row["text"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f'{file}, line {number}: expected {{"key": ..., "text": ...}}') from None
    return texts
