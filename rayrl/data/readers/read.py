"""Sources to records: conversations, documents, prompt rows, rankings and comparisons.

Each function takes one source of the configuration, tells every file's format from its rows, and returns what it took
beside what it didn't. Rows never raise; a source that isn't there, or can't be opened, does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from rayrl.config.sources import SourceConfig
from rayrl.data.readers.choices import CHOICES, Choice
from rayrl.data.readers.dialogues import DIALOGUES, Dialogue
from rayrl.data.readers.files import Part, builtin_sets, parts
from rayrl.data.readers.label_tool import LABEL_TOOL, find_items, is_input, load_items
from rayrl.data.readers.rows import BadLine, BadRow, Read, Rejected, kind_of, why_not_text
from rayrl.data.readers.turns import Rules
from rayrl.errors import UserError
from rayrl.types import Comparison, Conversation, Document, Message, Origin, PromptRow, Ranking, Verdict

T = TypeVar("T")
_VOTERS = 200
_TEXT_KEYS = ("text", "content")


@dataclass(frozen=True)
class _Place:
    """A row and where it stands."""

    part: Part
    line: int
    row: Mapping[str, Any]
    id: str
    """The row's own id where it has one, else the source's name and where it stands; unique in the source."""


def read_conversations(source: SourceConfig) -> Read[Conversation]:
    """All of `stream_conversations`, with ids that are unique in the source."""
    return _of_own_origin(source, stream_conversations(source, Counter()))


def stream_conversations(source: SourceConfig, ids: Counter[str] | None = None) -> Iterator[Conversation | Rejected]:
    """Dialogues that end with the assistant's answer, one by one, and the rows that weren't taken.

    A prompt row's reference is its answer. With `mend_turns` the patient's words after the last answer are dropped.
    `ids`: those given so far, for unique ones; without it rows may share an id, and memory doesn't grow with them.
    """

    def make(place: _Place, found: Any, rules: Rules) -> list[tuple[Conversation, Origin]]:
        messages = list(found.messages)
        fields = _fields(place, found, rules)
        if messages[-1]["role"] == "user" and found.reference is not None:
            messages.append(Message(role="assistant", content=found.reference))
        elif found.reference is not None:
            fields["reference"] = found.reference
        if messages[-1]["role"] == "user" and rules.mend_turns:
            messages.pop()
        if messages[-1]["role"] != "assistant":
            raise BadRow("the dialogue ends with the user's turn, expected the assistant's answer")
        if len(messages) < 2:
            raise BadRow("nobody answers: the dialogue has no assistant's turn")
        origin = _origin(source, place, messages, fields)
        return [(Conversation(place.id, messages, origin, fields), origin)]

    for record in _records(source, DIALOGUES, "conversations", make, ids):
        yield record if isinstance(record, Rejected) else record[0]


def read_prompt_rows(source: SourceConfig) -> Read[PromptRow]:
    """Prompts to sample answers to: prompt rows, and any dialogue or preference.

    Of a dialogue that ends with an answer, that answer becomes the reference.
    """

    def make(place: _Place, found: Any, rules: Rules) -> list[tuple[PromptRow, Origin]]:
        messages, reference = list(found.messages), found.reference
        fields = _fields(place, found, rules)
        origin = _origin(source, place, messages, fields)
        if messages[-1]["role"] == "assistant":
            reference = messages.pop()["content"]
        return [(PromptRow(place.id, messages, reference, fields), origin)]

    return _read(source, {**CHOICES, **DIALOGUES}, "prompts", make)


def read_rankings(source: SourceConfig) -> Read[Ranking]:
    """K answers with their ranks: the label tool's tables, lists from best to worst, and pairs."""

    def make(place: _Place, found: Any, rules: Rules) -> list[tuple[Ranking, Origin]]:
        prompt, origin = _prompt(source, place, found, rules)
        annotator = source.annotator or source.name
        return [(Ranking(prompt, found.answers, found.ranks, annotator, origin), origin)]

    return _read(source, {**CHOICES, **LABEL_TOOL}, "rankings", make)


def read_comparisons(source: SourceConfig) -> Read[Comparison]:
    """Pairs of answers with a verdict: preference stores, files of pairs, and all pairs of rankings.

    A store's rows keep their raters and origins. The rater of a ranking of the label tool is `human:ANNOTATOR`, of
    other files `file`.
    """
    store = _store(source)
    if store is not None:
        from rayrl.data.preferences import read_preferences

        rows = read_preferences(store)
        return Read(rows, [], [row.origin for row in rows], source.name)
    ranked: set[str] = set()

    def make(place: _Place, found: Any, rules: Rules) -> list[tuple[Comparison, Origin]]:
        prompt, origin = _prompt(source, place, found, rules)
        human = f"human:{source.annotator or source.name}"
        rater = human if "item" in prompt.fields and "rank1" in place.row else "file"
        rows = list(_pairs(found, prompt, rater, origin))
        if len(rows) == 1 and rater == "file":
            rows = [replace(rows[0], id=place.id)]
        elif prompt.id in ranked:
            rows = [replace(row, id=f"{row.id}@{place.id}") for row in rows]
        ranked.add(prompt.id)
        return [(row, origin) for row in rows]

    return _read(source, {**CHOICES, **LABEL_TOOL}, "comparisons", make)


def read_documents(source: SourceConfig) -> Read[Document]:
    """All of `stream_documents`, with ids that are unique in the source."""
    return _of_own_origin(source, stream_documents(source, Counter()))


def stream_documents(source: SourceConfig, ids: Counter[str] | None = None) -> Iterator[Document | Rejected]:
    """Plain text: rows with a `text`, text files by paragraphs, or one document a file. `ids`: as above."""
    known = ("auto", "text_rows", "paragraphs", "text")
    if source.format not in known:
        raise UserError(f"Source {source.name!r}: format {source.format!r} isn't of documents: {', '.join(known)}.")
    as_text: dict[str, Any] = {"paragraphs": "only_paragraphs", "text": "only_whole"}
    rules = Rules(max_chars=source.max_chars)
    for part in parts(source, as_text.get(source.format)):
        whole = source.format == "text" or (source.format == "auto" and bool(part.stem))
        for line, value in part.values:
            try:
                row = _row(value, source)
                key = next((key for key in _TEXT_KEYS if row.get(key) is not None), None)
                if key is None:
                    raise BadRow(f"no text: {_keys(row)}, expected 'text'")
                reason = why_not_text(key, row[key])
                if reason is not None:
                    raise BadRow(reason)
                place = _Place(part, line, row, _id(row, source, part, 0 if whole and len(row) == 1 else line, ids))
                fields = _fields(place, Dialogue([], frozenset({key})), rules)
                origin = Origin(source.name, _kind(source, fields), "text", part.name, line)
                document = Document(place.id, row[key], origin, fields)
            except (BadRow, RecursionError) as error:
                yield Rejected(part.name, line, _reason(error))
            else:
                yield document


Make = Callable[[_Place, Any, Rules], list[tuple[T, Origin]]]


def _of_own_origin(source: SourceConfig, records: Iterator[Any]) -> Read[Any]:
    """All of a stream whose records know where they are from."""
    return _collected(source, (one if isinstance(one, Rejected) else (one, one.origin) for one in records))


def _read(source: SourceConfig, formats: Mapping[str, Any], what: str, make: Make[T]) -> Read[T]:
    return _collected(source, _records(source, formats, what, make, Counter()))


def _collected(source: SourceConfig, records: Iterator[tuple[T, Origin] | Rejected]) -> Read[T]:
    rows: list[T] = []
    origins: list[Origin] = []
    rejected: list[Rejected] = []
    for record in records:
        if isinstance(record, Rejected):
            rejected.append(record)
        else:
            rows.append(record[0])
            origins.append(record[1])
    return Read(rows, rejected, origins, source.name)


def _records(
    source: SourceConfig, formats: Mapping[str, Any], what: str, make: Make[T], ids: Counter[str] | None
) -> Iterator[tuple[T, Origin] | Rejected]:
    if source.format != "auto" and source.format not in formats:
        known = ", ".join(["auto", *formats])
        raise UserError(f"Source {source.name!r}: format {source.format!r} isn't of {what}: {known}.")
    for part in parts(source):
        if part.stem and part.path is not None and "label_tool" in formats and is_input(part.path):
            continue  # it is what the folder's rankings are about
        first = list(islice(part.values, _VOTERS))
        name = source.format if source.format != "auto" else _vote(first, source, formats)
        rules = _rules(source, part, name)
        for line, value in chain(first, part.values):
            try:
                row = _row(value, source)
                if name is None:
                    raise BadRow(f"no format of {what} has {_keys(row)}; name `format` or `columns`")
                found = formats[name].parse(row, rules)
                made = make(_Place(part, line, row, _id(row, source, part, line, ids)), found, rules)
            except (BadRow, RecursionError) as error:
                yield Rejected(part.name, line, _reason(error))
            else:
                yield from made


def _vote(first: Sequence[tuple[int, Any]], source: SourceConfig, formats: Mapping[str, Any]) -> str | None:
    """The format that most of a file's first rows have; the earlier one of equals."""
    votes = Counter[str]()
    for _, value in first:
        try:
            row = _row(value, source)
        except BadRow:
            continue
        match = next((name for name, known in formats.items() if known.matches(row)), None)
        votes.update([match] if match else [])
    return max(formats, key=lambda name: votes[name]) if votes else None


def _rules(source: SourceConfig, part: Part, name: str | None) -> Rules:
    items: Mapping[str, Any] = {}
    if name == "label_tool":
        if source.items is not None:
            items = load_items(Path(source.items).expanduser())
        elif part.path is not None:
            items = find_items(part.path)
    return Rules(source.mend_turns, source.max_chars, items)


def _row(value: Any, source: SourceConfig) -> Mapping[str, Any]:
    """The row as a mapping under the format's own keys; a bare list is a dialogue's turns."""
    if isinstance(value, BadLine):
        raise BadRow(str(value))
    if isinstance(value, list):
        return {"data": value}
    if not isinstance(value, Mapping):
        raise BadRow(f"the row is {kind_of(value)}, expected a mapping")
    if not source.columns:
        return value
    theirs = {name: ours for ours, name in source.columns.items()}
    kept = {name: item for name, item in value.items() if name not in source.columns}
    return {**kept, **{theirs[name]: item for name, item in value.items() if name in theirs}}


def _id(row: Mapping[str, Any], source: SourceConfig, part: Part, line: int, ids: Counter[str] | None) -> str:
    """The row's id; a repeated one gets its place behind it, so that no row is lost."""
    given = row.get("id")
    given = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    place = "-".join(text for text in (part.stem, str(line) if line else "") if text)
    usable = isinstance(given, str) and why_not_text("id", given) is None and len(given) <= 200
    own = str(given) if usable else f"{source.name}-{place}"
    if ids is None:
        return own
    unique = own if not ids[own] else f"{own}@{place or line}"
    while ids[unique]:
        unique += "+"
    ids[unique] += 1
    return unique


def _fields(place: _Place, found: Any, rules: Rules) -> dict[str, Any]:
    """What the row says besides: what its format doesn't take up, and its `fields`; nulls are left out."""
    rest = {key: value for key, value in place.row.items() if key not in found.used and key != "id"}
    fields = {}
    for name, value in {**rest, **found.fields}.items():
        if value is None or value != value:  # null, also as pandas writes it
            continue
        try:
            text = json.dumps([name, value], ensure_ascii=False, default=str)
        except (TypeError, ValueError):
            raise BadRow(f"field {_plain_key(name)} is {kind_of(value)}, which JSON can't hold") from None
        if len(text) > rules.max_chars:
            raise BadRow(f"field {_plain_key(name)} has {len(text)} characters, more than max_chars")
        if re.search("[\ud800-\udfff]", text):
            raise BadRow(f"field {_plain_key(name)} holds half a character")
        fields[name] = value if isinstance(value, str | int | float) else json.loads(text)[1]
    return fields


def _origin(source: SourceConfig, place: _Place, messages: Sequence[Message], fields: Mapping[str, Any]) -> Origin:
    asked = sum(message["role"] == "user" for message in messages)
    form: Literal["instruction", "conversation"] = "conversation" if asked > 1 else "instruction"
    return Origin(source.name, _kind(source, fields), form, place.part.name, place.line)


def _kind(source: SourceConfig, fields: Mapping[str, Any]) -> Literal["distilled", "real", "unknown"]:
    """As the source says; where it doesn't, as the row does."""
    said = fields.get("kind")
    if source.kind == "unknown" and isinstance(said, str) and said in ("distilled", "real"):
        return "distilled" if said == "distilled" else "real"
    return source.kind


def _prompt(source: SourceConfig, place: _Place, found: Choice, rules: Rules) -> tuple[PromptRow, Origin]:
    """The prompt of a choice; the same one has the same id in every row, and in every annotator's file."""
    fields = _fields(place, found, rules)
    digest = _digest(found.messages)
    if "item" in found.fields:  # the label tool counts its items from 0 in every file
        digest = f"{found.fields['item']}-{_digest([found.messages, sorted(found.answers)])}"
    name = found.prompt_id if why_not_text("id", found.prompt_id) is None else None
    row_id = name or (digest if "item" in found.fields else f"{source.name}-{digest}")
    prompt = PromptRow(row_id, found.messages, found.reference, fields)
    return prompt, _origin(source, place, found.messages, fields)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _pairs(found: Choice, prompt: PromptRow, rater: str, origin: Origin) -> Iterator[Comparison]:
    for a, b in combinations(range(len(found.answers)), 2):
        verdict: Verdict = "tie"
        if found.ranks[a] != found.ranks[b]:
            verdict = "a" if found.ranks[a] < found.ranks[b] else "b"
        scores = {"ranks": [found.ranks[a], found.ranks[b]]} if len(found.answers) > 2 else {}
        yield Comparison(
            f"{prompt.id}/{a}-{b}/{rater}", prompt, found.answers[a], found.answers[b], verdict, found.margin, rater,
            scores, None, origin,
        )  # fmt: skip


def _store(source: SourceConfig) -> Path | None:
    """The preference store that the source is, or None."""
    from rayrl.data.preferences import STORE

    path = builtin_sets().get(source.path, Path(source.path).expanduser())
    if source.format == "comparisons" or (path / STORE).is_file():
        return path
    if source.format != "auto" or not path.is_file():
        return None
    with path.open("rb") as stream:
        if stream.read(4) != b"PAR1":
            return None
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet: {error}") from error
    return path if {"answer_a", "answer_b", "verdict"} <= set(names) else None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, BadRow) else "nested too deeply"


def _keys(row: Mapping[str, Any]) -> str:
    """The row's keys, but none that could be a patient's words (a table without a header)."""
    plain = [str(key) for key in row if re.fullmatch("[A-Za-z_][A-Za-z0-9_-]{0,24}", str(key))]
    others = len(row) - len(plain)
    shown = ", ".join(plain[:8]) or "none that looks like one"
    return f"the keys {shown}" + (f" and {others} others" if others else "")


def _plain_key(name: Any) -> str:
    return repr(name) if re.fullmatch("[A-Za-z_][A-Za-z0-9_-]{0,24}", str(name)) else "with an odd name"
