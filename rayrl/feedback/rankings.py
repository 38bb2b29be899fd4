"""Human rankings of K answers: read, checked, brought together by item, and written out for a third expert.

An item is a conversation with its answers, whatever its id in a file; annotators may have seen the answers in different
orders, so ranks are aligned by the answers' texts. Besides the label tool's files (data/readers) there is a format of
the project's own, JSONL:

    {"id", "messages", "reference", "fields", "answers": [K texts], "annotator", "ranks", "all_wrong"}

`ranks` is one rank an answer (1 the best, ties allowed), or such a list by criterion, {"safety": [1, 2], ...}, or null
where nobody has ranked the item yet. Ranks by criterion combine in the order of their importance (Zhongjing: safety,
then professionalism, then fluency): a later criterion decides only where all earlier ones tie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rayrl.config.feedback import HumanConfig, RankingSourceConfig
from rayrl.data.prompts import BadLine, Rejected, check_row
from rayrl.data.readers import read_rankings
from rayrl.data.readers.rows import kind_of, why_not_text
from rayrl.data.readers.values import file_values
from rayrl.feedback.pairs import form_of
from rayrl.types import Origin, PromptRow, Ranking

_ROW_KEYS = ("id", "messages", "reference", "fields")
_OWN_KEYS = frozenset({"messages", "answers", "ranks"})
_VOTERS = 200


@dataclass
class Item:
    """A prompt, its K answers and what each annotator made of them."""

    prompt: PromptRow
    answers: list[str]
    origin: Origin
    """Of the first ranking."""
    ranks: dict[str, list[int]] = field(default_factory=dict)
    """By annotator: dense ranks (1, 2, 2, 3) of the K answers."""
    all_wrong: dict[str, bool] = field(default_factory=dict)
    """By annotator: whether every answer is wrong."""


@dataclass(frozen=True)
class RankingsRead:
    """What the sources held."""

    items: list[Item]
    rejected: list[Rejected]
    unranked: int
    """Rows of the project's own format that nobody has ranked yet."""


def read_items(config: HumanConfig) -> RankingsRead:
    """All rankings of all sources by item, in order of first appearance.

    Raises UserError where a source can't be read.
    """
    rankings: list[Ranking] = []
    rejected: list[Rejected] = []
    unranked = 0
    for source in config.rankings:
        own = _own_format(source)
        if own is None:
            read = read_rankings(source)
            found, bad, missing = list(read.rows), list(read.rejected), 0
        else:
            found, bad, missing = _read_own(own, source)
        name = source.criterion
        rankings += [replace(r, criteria={name: r.ranks}) if name and not r.criteria else r for r in found]
        rejected += bad
        unranked += missing
    items, doubled = group(rankings, config.order)
    return RankingsRead(items, rejected + doubled, unranked)


def group(rankings: Iterable[Ranking], order: Sequence[str]) -> tuple[list[Item], list[Rejected]]:
    """Rankings by item; an annotator's rankings of one item on several criteria become one.

    Put aside: two answers of one text, a criterion that isn't in `order`, and all but the first ranking where an
    annotator ranked an item twice.
    """
    items: dict[tuple[Any, ...], Item] = {}
    votes: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    rejected: list[Rejected] = []
    for ranking in rankings:
        # By content: the files of two annotators may number the same prompts differently.
        turns = tuple((message["role"], message["content"]) for message in ranking.prompt.messages)
        key = (turns, frozenset(ranking.answers))
        item = items.get(key) or Item(ranking.prompt, ranking.answers, ranking.origin)
        vote = votes.get((*key, ranking.annotator), {})
        aligned = _by_criterion(ranking, item)
        reason = _why_not(ranking, vote, aligned, order)
        if reason is not None:
            rejected.append(Rejected(ranking.origin.file, ranking.origin.line, reason))
            continue
        items[key], votes[(*key, ranking.annotator)] = item, {**vote, **aligned}
        item.ranks[ranking.annotator] = combine({**vote, **aligned}, order)
        item.all_wrong[ranking.annotator] = item.all_wrong.get(ranking.annotator, False) or ranking.all_wrong
    return list(items.values()), rejected


def combine(criteria: Mapping[str, Sequence[int]], order: Sequence[str]) -> list[int]:
    """Dense ranks from ranks by criterion: the first criterion of `order` decides, the next where it ties, and so on.

    The key "" stands for ranks without a criterion, which decide alone.

    >>> combine({"fluency": [1, 2, 3], "safety": [2, 1, 1]}, ["safety", "professionalism", "fluency"])
    [3, 1, 2]
    """
    names = [""] if "" in criteria else [name for name in order if name in criteria]
    keys = list(zip(*(criteria[name] for name in names), strict=True))
    places = {key: place for place, key in enumerate(sorted(set(keys)), start=1)}
    return [places[key] for key in keys]


def write_unranked(path: str | Path, items: Iterable[Item], annotator: str) -> None:
    """Writes items for that annotator to rank: the project's own format with `ranks` null and the `earlier` ranks."""
    draft = Path(f"{path}.draft")
    with draft.open("w", encoding="utf-8") as out:
        for item in items:
            row = {
                "id": item.prompt.id,
                "messages": item.prompt.messages,
                "reference": item.prompt.reference,
                "fields": dict(item.prompt.fields),
                "answers": item.answers,
                "annotator": annotator,
                "ranks": None,
                "all_wrong": False,
                "earlier": {name: {"ranks": r, "all_wrong": item.all_wrong[name]} for name, r in item.ranks.items()},
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(draft, path)


def _own_format(source: RankingSourceConfig) -> Path | None:
    """The source's file, where a row among the first is of the project's own format."""
    path = Path(source.path).expanduser()
    if source.format != "auto" or path.suffix != ".jsonl" or not path.is_file():
        return None
    first = (_renamed(value, source) for _, value in islice(file_values(path, source.encoding), _VOTERS))
    return path if any(isinstance(value, Mapping) and value.keys() >= _OWN_KEYS for value in first) else None


def _renamed(value: Any, source: RankingSourceConfig) -> Any:
    """The row with the names that `columns` gives it."""
    if not isinstance(value, Mapping) or not source.columns:
        return value
    names = {theirs: ours for ours, theirs in source.columns.items()}
    return {names.get(key, key): inside for key, inside in value.items()}


def _read_own(path: Path, source: RankingSourceConfig) -> tuple[list[Ranking], list[Rejected], int]:
    rows: list[Ranking] = []
    rejected: list[Rejected] = []
    unranked = 0
    for line, value in file_values(path, source.encoding):
        ranking = _check(_renamed(value, source), path, line, source)
        if ranking is None:
            unranked += 1
        elif isinstance(ranking, str):
            rejected.append(Rejected(str(path), line, ranking))
        else:
            rows.append(ranking)
    return rows, rejected, unranked


def _check(value: Any, path: Path, line: int, source: RankingSourceConfig) -> Ranking | str | None:
    """The ranking of a row, why it isn't one, or None where it isn't ranked yet."""
    if isinstance(value, BadLine) or not isinstance(value, Mapping):
        return value if isinstance(value, BadLine) else str(check_row(value))
    prompt = check_row({key: value[key] for key in _ROW_KEYS if key in value})
    if isinstance(prompt, str):
        return prompt
    answers, ranks, all_wrong = value.get("answers"), value.get("ranks"), value.get("all_wrong")
    if not isinstance(answers, list):
        return "answers isn't a list of texts"
    reason = next(filter(None, (_why_not_answer(i, text, source) for i, text in enumerate(answers, 1))), None)
    if reason is not None:
        return reason
    if all_wrong is not None and not isinstance(all_wrong, bool):
        return f"all_wrong is {kind_of(all_wrong)}, expected true or false"
    if ranks is None and not all_wrong:
        return None
    annotator = source.annotator or value.get("annotator") or source.name
    criteria = ranks if isinstance(ranks, Mapping) else {}
    whole = [1] * len(answers) if criteria or ranks is None else ranks
    for name, given in ({**criteria} or {"": whole}).items():
        if not isinstance(given, list) or len(given) != len(answers) or not all(_is_rank(rank) for rank in given):
            return f"ranks{f' of {name}' if name else ''} must be one whole number from 1 an answer"
    origin = Origin(source.name, source.kind, form_of(prompt), str(path), line)
    return Ranking(prompt, answers, whole, str(annotator), origin, criteria, bool(all_wrong))


def _why_not_answer(number: int, text: Any, source: RankingSourceConfig) -> str | None:
    name = f"answer {number}"
    reason = why_not_text(name, text)
    if reason is None and len(text) > source.max_chars:
        reason = f"{name} has {len(text)} characters, more than max_chars={source.max_chars}"
    return reason


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _by_criterion(ranking: Ranking, item: Item) -> dict[str, list[int]]:
    """The ranking's ranks in the order of the item's answers, by criterion ("" for none)."""
    place = {text: index for index, text in enumerate(ranking.answers)}
    given = ranking.criteria or {"": ranking.ranks}
    return {name: [ranks[place[text]] for text in item.answers] for name, ranks in given.items()}


def _why_not(
    ranking: Ranking, vote: Mapping[str, Sequence[int]], aligned: Mapping[str, Sequence[int]], order: Sequence[str]
) -> str | None:
    if len(set(ranking.answers)) < len(ranking.answers):
        return "two answers have the same text"
    if len(ranking.answers) < 2:
        return "fewer than two answers"
    unknown = [name for name in aligned if name and name not in order]
    if unknown:
        return f"criterion {unknown[0]!r} isn't in the human rater's `order` ({', '.join(order)})"
    if vote and (vote.keys() & aligned.keys() or "" in vote or "" in aligned):
        return f"{ranking.annotator} ranked the item twice; the first ranking counts"
    return None
