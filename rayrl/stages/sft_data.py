"""The data of `rayrl sft`: sources read, split, tokenised and written where every rank maps them.

data/train/, data/validation/   examples (data/examples.py); the folder is removed when the run is done
rejected.jsonl                  rows that weren't taken, with file, line and reason
used.jsonl                      keys of the prompts that are trained on (data/used.py)

Row by row, so that sources may be larger than memory where their files are JSONL or Parquet (other forms are read file
by file). What grows with them is the list of rejected rows and, with `data.validation`, the keys of its rows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayrl.config.sft import SFTConfig
from rayrl.config.sources import SourceConfig
from rayrl.data.chat import load_tokenizer
from rayrl.data.chat_masks import ConversationEncoder, DocumentEncoder, Encoded
from rayrl.data.examples import ExamplesWriter
from rayrl.data.readers import Rejected, stream_conversations, stream_documents, write_rejected
from rayrl.data.readers.rows import check_share
from rayrl.data.split import conversation_key
from rayrl.data.used import USED, UsedPrompts
from rayrl.errors import UserError
from rayrl.models.builtin import CHATML_TEMPLATE
from rayrl.types import Conversation, Document, Message, PromptRow

DATA = "data"
READY = "counts.json"
REJECTED = "rejected.jsonl"
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


def write_data(config: SFTConfig, tokenizer: Any, folder: Path) -> DataCounts:
    """Reads, splits and tokenises the sources into the run's folder, where ranks and later stages find it.

    Raises UserError where one can't be read, has too many bad rows, or there is nothing to train on.
    """
    draft = folder / f"{DATA}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        counts = _Reading(config, tokenizer, draft).read()
        for name in (REJECTED, USED):
            os.replace(draft / name, folder / name)
        shutil.rmtree(folder / DATA, ignore_errors=True)
        os.replace(draft / DATA, folder / DATA)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return counts


class _Reading:
    """One pass over all sources."""

    def __init__(self, config: SFTConfig, tokenizer: Any, draft: Path) -> None:
        self._config, self._draft = config, draft
        data = config.data
        self._chat = config.objective == "chat"
        self._documents = DocumentEncoder(tokenizer, data.max_tokens)
        if self._chat:
            self._conversations = ConversationEncoder(
                tokenizer, data.max_tokens, long=data.long, system_prompt=data.system_prompt
            )
        self._rows = self._turns_cut = self._conversations_cut = self._train_tokens = self._loss_tokens = 0
        self._rejected: list[Rejected] = []

    def read(self) -> DataCounts:
        """Writes everything; what there is."""
        data, folder = self._config.data, self._draft / DATA
        used = UsedPrompts(self._draft / "used")
        with ExamplesWriter(folder / "train") as train, ExamplesWriter(folder / "validation") as held:
            held_keys, held_sizes = self._read_validation(held)
            sizes, fraction = dict.fromkeys((one.name for one in data.sources), 0), data.validation_fraction
            if not data.validation:
                held_sizes = dict(sizes) if fraction > 0 else {}
            shared: dict[str, str] = {}
            for number, source in enumerate(data.sources):
                for record, examples in self._of(source):
                    key = record_key(record)
                    if key in held_keys:
                        shared.setdefault(key, record.id)
                    elif not data.validation and held_out(key, fraction):
                        held_sizes[source.name] += len(examples)
                        _add(held, number, examples)
                    else:
                        sizes[source.name] += len(examples)
                        _add(train, number, examples)
                        self._count(examples)
                        if isinstance(record, Conversation):
                            used.add(record)
        self._check({held_keys[key]: name for key, name in shared.items()}, sizes, held_sizes)
        write_rejected(self._draft / REJECTED, self._rejected)
        used.write(self._draft / USED)
        counts = DataCounts(
            rows=self._rows,
            train=sizes,
            validation=held_sizes,
            dropped=dict(Counter(_kind_of(bad.reason) for bad in self._rejected)),
            turns_cut=self._turns_cut,
            conversations_cut=self._conversations_cut,
            train_tokens=self._train_tokens,
            loss_tokens=self._loss_tokens,
        )
        (folder / READY).write_text(json.dumps(asdict(counts)), encoding="utf-8")
        return counts

    def _read_validation(self, held: ExamplesWriter) -> tuple[dict[str, str], dict[str, int]]:
        """(ids of the rows of `data.validation` by their keys, examples by source)."""
        keys: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for number, source in enumerate(self._config.data.validation):
            sizes[source.name] = 0
            for record, examples in self._of(source):
                keys[record_key(record)] = record.id
                sizes[source.name] += len(examples)
                _add(held, number, examples)
        return keys, sizes

    def _of(self, source: SourceConfig) -> Iterator[tuple[Conversation | Document, list[Encoded]]]:
        """The source's rows in tokens. Rows too long for the model count as refused, but don't stop the run."""
        good = taken = 0
        bad: list[Rejected] = []
        too_long: list[Rejected] = []
        for record in stream_conversations(source) if self._chat else stream_documents(source):
            if isinstance(record, Rejected):
                bad.append(record)
                continue
            good += 1
            examples = self._encode(record)
            if isinstance(examples, str):
                too_long.append(Rejected(record.origin.file, record.origin.line, examples))
                continue
            taken += 1
            yield record, examples
        check_share(
            source.name, "rows", good, bad, self._config.data.max_rejected_fraction, "data.max_rejected_fraction"
        )
        self._rows += good + len(bad)
        self._rejected += bad + too_long
        if not taken:
            last = self._rejected[-1]
            raise UserError(f"{source.name}: no row is usable; the last: {last.file}, line {last.line}: {last.reason}")

    def _encode(self, record: Conversation | Document) -> list[Encoded] | str:
        if isinstance(record, Document):
            return self._documents.encode(record.text)
        encoded = self._conversations.encode(record.messages)
        return encoded if isinstance(encoded, str) else [encoded]

    def _count(self, examples: Sequence[Encoded]) -> None:
        for one in examples:
            self._turns_cut += one.turns_cut
            self._conversations_cut += one.turns_cut > 0
            self._train_tokens += len(one.ids)
            self._loss_tokens += int(one.mask.sum())

    def _check(self, shared: Mapping[str, str], train: Mapping[str, int], held: Mapping[str, int]) -> None:
        """`shared`: ids of rows that are validated on, and of rows that are the same and trained on."""
        if shared:
            held_id, train_id = next(iter(shared.items()))
            raise UserError(
                f"{len(shared)} rows of data.validation are also trained on, so its loss would mislead (first: "
                f"{held_id!r} is {train_id!r}): take them out of one side"
            )
        data = self._config.data
        if not data.validation and data.validation_fraction > 0 and not (any(train.values()) and any(held.values())):
            side = "validate" if not any(held.values()) else "train"
            rows = self._rows - len(self._rejected)
            raise UserError(
                f"data.validation_fraction={data.validation_fraction} of {rows} rows leaves nothing to {side} on: use "
                "more rows, another fraction (0 for none), or name data.validation"
            )


def _add(writer: ExamplesWriter, source: int, examples: Sequence[Encoded]) -> None:
    for one in examples:
        writer.add(source, one)


def record_key(record: Conversation | Document) -> str:
    """A hash of what is said, blind to case, width, spacing and system messages."""
    messages = record.messages if isinstance(record, Conversation) else [Message(role="user", content=record.text)]
    return conversation_key(PromptRow(record.id, messages))


def held_out(key: str, fraction: float) -> bool:
    """Whether a record is validated on: by its key alone, so that adding others moves none."""
    return int(key[:13], 16) / 16**13 < fraction


def _kind_of(reason: str) -> str:
    """A reason without its numbers, so that like ones are counted together."""
    return " ".join("N" if word.strip(",.:=").isdecimal() else word for word in reason.split())
