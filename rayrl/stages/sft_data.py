"""The data of `rayrl sft`: sources read, split, tokenised and written where every rank maps them.

data/train/, data/validation/   examples (data/examples.py); the folder is removed when the run is done
rejected.jsonl                  rows that weren't taken, with file, line and reason
used.jsonl                      keys of the prompts that are trained on (data/used.py)
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayrl.config.sft import SFTConfig
from rayrl.config.sources import SourceConfig
from rayrl.data.chat import load_tokenizer
from rayrl.data.chat_masks import ConversationEncoder, DocumentEncoder, Encoded
from rayrl.data.examples import Examples
from rayrl.data.readers import Rejected, check_read, read_conversations, read_documents, write_rejected
from rayrl.data.split import conversation_key
from rayrl.data.used import write_used
from rayrl.errors import UserError
from rayrl.models.builtin import CHATML_TEMPLATE
from rayrl.types import Conversation, Document, Message, PromptRow

DATA = "data"
READY = "counts.json"
CHAT_TEMPLATES = {
    "chatml": CHATML_TEMPLATE,
    "plain": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
        "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
        "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
"""For base models: `chatml` needs its tokens in the vocabulary, `plain` only an end token."""


@dataclass(frozen=True)
class DataCounts:
    """What the sources gave."""

    rows: int
    """Read, good and bad."""
    train: dict[str, int]
    """Examples by source; a document may give several."""
    validation: dict[str, int]
    dropped: dict[str, int]
    """Rows by reason (without what differs from row to row)."""
    turns_cut: int
    """Assistant's turns that long conversations lost."""
    conversations_cut: int
    train_tokens: int
    loss_tokens: int


def sft_tokenizer(config: SFTConfig, model_path: str) -> Any:
    """The tokenizer that the model is trained and saved with."""
    asked = config.model.chat_template
    return load_tokenizer(
        model_path,
        CHAT_TEMPLATES.get(asked or "", asked),
        section="model",
        needs_template=config.objective == "chat",
        add_pad_token=True,
    )


def read_counts(folder: Path) -> DataCounts | None:
    """What an earlier start of the run in `folder` wrote; None where it wrote nothing whole."""
    ready = folder / DATA / READY
    return DataCounts(**json.loads(ready.read_text(encoding="utf-8"))) if ready.is_file() else None


@dataclass(frozen=True)
class SFTData:
    """Everything read, in memory."""

    counts: DataCounts
    train: Examples
    validation: Examples
    rejected: list[Rejected]
    conversations: list[Conversation]
    """Those that are trained on."""

    def write(self, folder: Path) -> DataCounts:
        """Puts it where ranks and later stages find it."""
        write_rejected(folder / "rejected.jsonl", self.rejected)
        write_used(folder, self.conversations)
        partial = folder / f"{DATA}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.train.save(partial / "train")
        self.validation.save(partial / "validation")
        (partial / READY).write_text(json.dumps(asdict(self.counts)), encoding="utf-8")
        shutil.rmtree(folder / DATA, ignore_errors=True)
        os.replace(partial, folder / DATA)
        return self.counts


def read_data(config: SFTConfig, tokenizer: Any) -> SFTData:
    """Reads, splits and tokenises the sources.

    Raises UserError where one can't be read, has too many bad rows, or there is nothing to train on.
    """
    reader = _Reader(config, tokenizer)
    train = [reader.read(source) for source in config.data.sources]
    held = [reader.read(source) for source in config.data.validation]
    if held:
        _check_disjoint(train, held)
    elif config.data.validation_fraction > 0:
        train, held = _split(train, config.data.validation_fraction)
    examples = _examples(train)
    cut = [one.turns_cut for source in train for row in source for one in row.examples if one.turns_cut]
    counts = DataCounts(
        rows=reader.rows,
        train=_sizes(config.data.sources, train),
        validation=_sizes(config.data.validation or config.data.sources, held) if held else {},
        dropped=dict(Counter(_kind_of(bad.reason) for bad in reader.rejected)),
        turns_cut=sum(cut),
        conversations_cut=len(cut),
        train_tokens=len(examples.ids),
        loss_tokens=int(examples.loss_tokens.sum()),
    )
    used = [row.record for source in train for row in source if isinstance(row.record, Conversation)]
    return SFTData(counts, examples, _examples(held), reader.rejected, used)


@dataclass(frozen=True)
class _Row:
    record: Conversation | Document
    key: str
    examples: list[Encoded]


class _Reader:
    """Reads sources one after the other and keeps count of what was refused."""

    def __init__(self, config: SFTConfig, tokenizer: Any) -> None:
        self._config = config
        data = config.data
        self._chat = config.objective == "chat"
        self._documents = DocumentEncoder(tokenizer, data.max_tokens)
        if self._chat:
            self._conversations = ConversationEncoder(
                tokenizer, data.max_tokens, long=data.long, system_prompt=data.system_prompt
            )
        self.rows = 0
        self.rejected: list[Rejected] = []

    def read(self, source: SourceConfig) -> list[_Row]:
        """The source's rows in tokens. Rows too long for the model count as refused, but don't stop the run."""
        read: Any = read_conversations(source) if self._chat else read_documents(source)
        check_read(read, self._config.data.max_rejected_fraction, "data.max_rejected_fraction")
        self.rows += len(read.rows) + len(read.rejected)
        self.rejected += read.rejected
        taken = []
        for record in read.rows:
            examples = self._encode(record)
            if isinstance(examples, str):
                self.rejected.append(Rejected(record.origin.file, record.origin.line, examples))
            else:
                taken.append(_Row(record, record_key(record), examples))
        if not taken:
            last = self.rejected[-1]
            raise UserError(f"{source.name}: no row is usable; the last: {last.file}, line {last.line}: {last.reason}")
        return taken

    def _encode(self, record: Conversation | Document) -> list[Encoded] | str:
        if isinstance(record, Document):
            return self._documents.encode(record.text)
        encoded = self._conversations.encode(record.messages)
        return encoded if isinstance(encoded, str) else [encoded]


def record_key(record: Conversation | Document) -> str:
    """A hash of what is said, blind to case, width, spacing and system messages."""
    messages = record.messages if isinstance(record, Conversation) else [Message(role="user", content=record.text)]
    return conversation_key(PromptRow(record.id, messages))


def held_out(key: str, fraction: float) -> bool:
    """Whether a record is validated on: by its key alone, so that adding others moves none."""
    return int(key[:13], 16) / 16**13 < fraction


def _split(sources: Sequence[list[_Row]], fraction: float) -> tuple[list[list[_Row]], list[list[_Row]]]:
    train = [[row for row in source if not held_out(row.key, fraction)] for source in sources]
    held = [[row for row in source if held_out(row.key, fraction)] for source in sources]
    if not any(held) or not any(train):
        side = "validate" if not any(held) else "train"
        total = sum(map(len, sources))
        raise UserError(
            f"data.validation_fraction={fraction} of {total} rows leaves nothing to {side} on: use more rows, another "
            "fraction (0 for none), or name data.validation"
        )
    return train, held


def _check_disjoint(train: Sequence[list[_Row]], held: Sequence[list[_Row]]) -> None:
    keys = {row.key: row.record.id for source in train for row in source}
    shared = [row for source in held for row in source if row.key in keys]
    if shared:
        raise UserError(
            f"{len(shared)} rows of data.validation are also trained on, so its loss would mislead (first: "
            f"{shared[0].record.id!r} is {keys[shared[0].key]!r}): take them out of one side"
        )


def _examples(sources: Sequence[list[_Row]]) -> Examples:
    return Examples.build([[one for row in source for one in row.examples] for source in sources])


def _sizes(sources: Sequence[SourceConfig], rows: Sequence[list[_Row]]) -> dict[str, int]:
    return {source.name: sum(len(row.examples) for row in given) for source, given in zip(sources, rows, strict=True)}


def _kind_of(reason: str) -> str:
    """A reason without its numbers, so that like ones are counted together."""
    return " ".join("N" if word.strip(",.:=").isdecimal() else word for word in reason.split())
