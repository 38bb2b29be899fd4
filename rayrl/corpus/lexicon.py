"""The stage `extract`: is a text of the domain? By the share of it that terms of the domain's lexicons cover.

HuatuoGPT-II keeps what holds enough medical terms (appendix A: THUOCL and the SPECIALIST lexicon without general
words). Here the share is of characters in Chinese, Japanese and Korean and of words elsewhere, so that long and short
texts are measured alike; terms have weights, and each language and genre may have a threshold of its own. Terms are
found by the Aho-Corasick automaton of ahocorasick-rs, the longest at each place; in Latin script whole words only, and
a word counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pyarrow as pa

from rayrl.config.corpus import ExtractConfig
from rayrl.corpus.records import HITS, Result, keep, replace
from rayrl.data.storage import Place
from rayrl.errors import UserError

BY_CHARACTER = frozenset({"zh", "zh-Hant", "ja", "ko"})
NOT_ENOUGH = "too few domain terms"
MAX_WEIGHT = 100.0
"""Lists such as THUOCL's have a count in the second column, which is no weight."""
BUILTIN = ("medical-en", "medical-zh")
"""Lists in the package, by the name that stands for a path."""
_LATIN = re.compile("[a-zà-ɏ]")


@dataclass
class Lexicon:
    """Terms in lower case, each with its weight. A `*` at an end stands for any letters there."""

    terms: dict[str, float] = field(default_factory=dict)
    repeated: int = 0
    """Lines whose term was there before."""

    @classmethod
    def load(cls, config: ExtractConfig) -> Lexicon:
        """All lists together, without stop words. Raises UserError where one can't be read or says nothing."""
        lexicon = cls()
        for one in config.lexicons:
            lines = _lines_of(one.path)
            if not lines:
                raise UserError(f"lexicon {one.path}: it holds no term")
            for line in lines:
                lexicon._add(*_term_of(line, one.path, one.weight))
        for path in config.stop_words:
            for line in _lines_of(path):
                lexicon.terms.pop(line.partition("\t")[0].strip().lower(), None)
        return lexicon

    def _add(self, term: str, weight: float) -> None:
        self.repeated += term in self.terms
        self.terms[term] = max(weight, self.terms.get(term, 0.0))


def _lines_of(path: str) -> list[str]:
    try:
        raw = (
            resources.files("rayrl").joinpath(f"assets/lexicon_{path.replace('-', '_')}.txt").read_bytes()
            if path in BUILTIN
            else Place.of(path).read_bytes()
        )
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"lexicon {path} can't be read: {error} (built in: {', '.join(BUILTIN)})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"lexicon {path} isn't UTF-8 (byte {error.start})") from error
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _term_of(line: str, path: str, weight: float) -> tuple[str, float]:
    term, tab, written = line.partition("\t")
    term = term.strip().lower()
    if not term.strip("*"):
        raise UserError(f"lexicon {path}: the line {line!r} has no term")
    try:
        weight = float(written) if tab else weight
    except ValueError:
        raise UserError(f"lexicon {path}: the weight of {term!r} is {written.strip()!r}, no number") from None
    if not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"lexicon {path}: the weight of {term!r} is {weight:g}, not above 0 and up to {MAX_WEIGHT:g}; if the "
            "second column is a count, leave it out"
        )
    return term, weight


@dataclass(frozen=True)
class Density:
    """How much of a text is domain terms. Example: Density(0.12, Counter({"高血压": 3, "血压": 1}))"""

    share: float
    hits: Counter[str]


class Matcher:
    """Finds a lexicon's terms. Can't be pickled: make it where it is used."""

    def __init__(self, lexicon: Lexicon) -> None:
        from ahocorasick_rs import AhoCorasick, MatchKind

        self._patterns = list(lexicon.terms)
        self._weights = list(lexicon.terms.values())
        bare = [term.strip("*") for term in self._patterns]
        # Whether a match must begin (end) where a word does.
        pairs = list(zip(self._patterns, bare, strict=True))
        self._begins = [not term.startswith("*") and bool(_LATIN.match(word)) for term, word in pairs]
        self._ends = [not term.endswith("*") and bool(_LATIN.match(word[-1])) for term, word in pairs]
        self._words = [term.count(" ") + 1 for term in bare]
        self._automaton = AhoCorasick(bare, matchkind=MatchKind.Standard)

    def density(self, text: str, language: str) -> Density:
        """The share of the text's characters (Chinese and the like) or words that terms cover, times their weights."""
        by_character = language in BY_CHARACTER
        if not text.isascii() or not text.islower():
            text = text.lower()
        if not by_character:
            text = text.replace("\n", " ")
        units = len(text) - text.count(" ") - text.count("\n") if by_character else len(text.split())
        covered, reached = 0.0, -1
        found: Counter[int] = Counter()
        for start, minus_end, term in self._whole(text):
            if start < reached:
                continue
            found[term] += 1
            if by_character:
                size = -minus_end - start
            else:
                counted = reached >= 0 and text.find(" ", reached, start) < 0  # the word that another term is in
                size = self._words[term] - counted
            covered += size * self._weights[term]
            reached = -minus_end
        hits = Counter({self._patterns[term]: count for term, count in found.items()})
        return Density(covered / units if units else 0.0, hits)

    def _whole(self, text: str) -> list[tuple[int, int, int]]:
        """(start, -end, term) of all matches that are whole words, also those inside others: of each start, the
        longest comes first."""
        begins, ends = self._begins, self._ends
        return sorted(
            (start, -end, term)
            for term, start, end in self._automaton.find_matches_as_indexes(text, overlapping=True)
            if not (begins[term] and start and _LATIN.match(text, start - 1))
            and not (ends[term] and end < len(text) and _goes_on(text, end))
        )


def _goes_on(text: str, end: int) -> bool:
    """Whether a word goes on after a term, other than by a plural's s."""
    if not _LATIN.match(text, end):
        return False
    return text[end] != "s" or bool(_LATIN.match(text, end + 1))


def threshold_of(language: str, genre: str, config: ExtractConfig) -> float:
    """The most particular of the configured ones."""
    thresholds: Mapping[str, float] = config.thresholds
    for key in (f"{language}/{genre}", genre, language):
        if key in thresholds:
            return thresholds[key]
    return config.threshold


class Extract:
    """The step. Adds `density` and `hits`; drops texts below their threshold."""

    def __init__(self, config: ExtractConfig, matcher: Matcher) -> None:
        self._config, self._matcher = config, matcher

    def __call__(self, table: pa.Table) -> Result:
        """See records.Step."""
        columns: Sequence[Sequence[Any]] = [table[name].to_pylist() for name in ("text", "language", "genre")]
        densities, hits, reasons = [], [], []
        for text, language, genre in zip(*columns, strict=True):
            found = self._matcher.density(text, language)
            enough = found.share >= threshold_of(language, genre, self._config)
            reasons.append(None if enough else NOT_ENOUGH)
            if enough:
                densities.append(found.share)
                top = sorted(found.hits.items(), key=lambda hit: (-hit[1], hit[0]))[: self._config.top_hits]
                hits.append([{"term": term, "count": count} for term, count in top])
        result = keep(table, reasons)
        kept = replace(replace(result.table, "density", densities), "hits", pa.array(hits, HITS))
        return Result(kept, result.dropped)
