"""Which prompts a model was fine-tuned on, so that later stages can take others: `used.jsonl`, {"key": ...} a row.

A key is split.conversation_key of a conversation up to a patient's turn that the doctor answers. Exact only: a near
copy has another key; name its source where near copies must be left out too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from rayrl.data.split import conversation_key
from rayrl.errors import UserError
from rayrl.types import Conversation, Message, PromptRow

USED = "used.jsonl"


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


def write_used(path: str | Path, conversations: Iterable[Conversation]) -> None:
    """Writes key and text of every prompt answered in the conversations, sorted, each once; replaces the file whole.

    `path`: the file, or the stage's folder, in which it is called used.jsonl.
    """
    target = Path(path) / USED if Path(path).is_dir() else Path(path)
    prompts = [prompt for one in conversations for prompt in answered_prompts(one.messages)]
    rows = {prompt_key(prompt): prompt_text(prompt) for prompt in prompts}
    draft = target.with_name(target.name + ".draft")
    with draft.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"key": k, "text": rows[k]}, ensure_ascii=False) + "\n" for k in sorted(rows))
    os.replace(draft, target)


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
