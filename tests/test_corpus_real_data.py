"""The steps on real text, medical, general and adverts in Chinese and English. Skipped where the data isn't there.

The numbers that docs/ gives are printed: `pytest -s`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import SHARED

from rayrl.config.corpus import (
    CleanConfig,
    DecontaminateConfig,
    DetectorConfig,
    ExtractConfig,
    LexiconConfig,
    QualityConfig,
    SegmentConfig,
)
from rayrl.corpus import minhash
from rayrl.corpus.classifier import Labelled, fit
from rayrl.corpus.clean import Clean
from rayrl.corpus.contamination import Decontaminate, read_items
from rayrl.corpus.detector import KEY as DETECTOR
from rayrl.corpus.detector import Pair, features_by
from rayrl.corpus.language import identify
from rayrl.corpus.lexicon import Extract, Lexicon, Matcher
from rayrl.corpus.normalise import normalise
from rayrl.corpus.quality import KEY, features
from rayrl.corpus.records import texts
from rayrl.corpus.segments import Segments
from rayrl.data.units import units

EXAMS = SHARED / "exam_mcq.jsonl"
CORPUS, TERMS = SHARED / "corpus_raw.jsonl", SHARED / "lexicon_medical.txt"
pytestmark = pytest.mark.skipif(
    not (CORPUS.is_file() and TERMS.is_file()), reason=f"no real data at {SHARED}: it lies beside some checkouts only"
)


@lru_cache(maxsize=1)
def rows() -> list[dict[str, Any]]:
    """Rows with normalised texts and their languages as identified; `side` is the language as the data says."""
    found = []
    for line in CORPUS.read_text("utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        text = normalise(row["text"])
        side = "en" if row["language"] == "en" else "zh"
        found.append({**row, "text": text, "language": identify(text), "side": side})
    return found


def halves(counted: list[dict[str, Any]]) -> dict[str, int]:
    """Each source in one of two halves, in which every language has about as much medical text, and as much other."""
    sizes: Counter[tuple[str, bool, str]] = Counter()
    for row in counted:
        sizes[row["side"], row["domain"] == "medical", row["source"]] += len(row["text"])
    half: dict[str, int] = {}
    filled: Counter[tuple[str, bool, int]] = Counter()
    for (side, medical, source), size in sizes.most_common():
        if source not in half:
            half[source] = int(filled[side, medical, 0] > filled[side, medical, 1])
        filled[side, medical, half[source]] += size
    return half


def test_most_medical_text_stays_and_most_other_goes() -> None:
    """The classifier that a text meets was fitted on other sources than the text's."""
    config = ExtractConfig(
        lexicons=[LexiconConfig(path="medical-en"), LexiconConfig(path=str(TERMS))],
        thresholds={"zh": 0.015, "en": 0.02},
    )
    counted = [row for row in rows() if row["domain"] != "mixed"]
    half = halves(counted)
    total: Counter[tuple[str, bool]] = Counter()
    chars: dict[str, Counter[tuple[str, bool]]] = {"extract": Counter(), "clean": Counter()}
    for number in (0, 1):
        labels = [
            Labelled(row["text"], row["domain"] == "medical", row["source"])
            for row in counted[::3]
            if half[row["source"]] != number
        ]
        quality, report = fit(labels, features, QualityConfig(labels=str(CORPUS)), 0, KEY)
        print(f"fitted on half {1 - number}: recall {report.recall:.3f}, precision {report.precision:.3f}")
        part = {row["id"]: row for row in counted if half[row["source"]] == number}
        side = {name: (row["side"], row["domain"] == "medical") for name, row in part.items()}
        for name, row in part.items():
            total[side[name]] += len(row["text"])
        table = texts(
            {**{key: row[key] for key in ("id", "text", "language", "genre")}, "document": name}
            for name, row in part.items()
        )
        extracted = Extract(config, Matcher(Lexicon.load(config)))(table)
        segmented = Segments(SegmentConfig())(extracted.table)
        cleaned = Clean(CleanConfig(mask=False), quality)(segmented.table)
        for stage, kept in (("extract", extracted.table), ("clean", cleaned.table)):
            for name, text in zip(kept["document"].to_pylist(), kept["text"].to_pylist(), strict=True):
                chars[stage][side[name]] += len(text)
    for stage, found in chars.items():
        shares = {
            f"{side} {'medical' if good else 'other'}": f"{found[side, good] / n:.3f}"
            for (side, good), n in total.items()
        }
        print(stage, shares)
    for side in ("zh", "en"):
        assert chars["clean"][side, True] >= 0.9 * total[side, True]
        assert chars["clean"][side, False] <= 0.1 * total[side, False]


def edited(text: str, share: float, rng: random.Random) -> str:
    """With a share of its characters edited: here and there, or all in one place."""
    letters = list(text)
    number = max(1, int(len(letters) * share))
    if rng.random() < 0.5:
        for at in rng.sample(range(len(letters)), number):
            letters[at] = rng.choice(("", rng.choice(letters), letters[at] + rng.choice(letters)))
    else:
        at = rng.randrange(len(letters) - number + 1)
        letters[at : at + number] = [] if rng.random() < 0.5 else rng.choices(letters, k=number)
    return "".join(letters)


def similar_pairs(found: list[dict[str, Any]], folder: Path, threshold: float) -> set[tuple[int, int]]:
    """Pairs by their numbers, through one shard's files."""
    sketches, pairs, halves = (str(folder / f"{name}.parquet") for name in ("sketches", "pairs", "halves"))
    pq.write_table(minhash.sketches(texts(found)), sketches)
    bands = [minhash.candidates([sketches], band) for band in range(minhash.BANDS)]
    both = pa.concat_tables(bands)
    pq.write_table(minhash.pairs_table(np.stack([both["a"], both["b"]], axis=1)), pairs)
    pq.write_table(minhash.with_signatures([pairs], sketches, 0), halves)
    return {(row["a"], row["b"]) for row in minhash.similar([halves], sketches, 0, threshold).to_pylist()}


def test_copies_with_a_tenth_of_their_characters_edited_are_found(tmp_path: Path) -> None:
    """Recall: copies found with their original. Precision: of the pairs that hold a copy, those whose other text is
    its original, or was itself found like the original (the corpus has near-duplicates of its own)."""
    rng = random.Random(0)
    distinct = {row["text"]: row["language"] for row in rows() if len(row["text"]) >= 15}
    found = [{"text": text, "language": language} for text, language in distinct.items()]
    first_copy = len(found)
    planted = rng.sample(range(first_copy), first_copy // 20)
    for at in planted:
        copy = edited(found[at]["text"], rng.uniform(0.01, 0.1), rng)
        found.append({"text": copy, "language": found[at]["language"]})
    pairs = similar_pairs(found, tmp_path, 0.4)
    recall = sum((at, first_copy + number) in pairs for number, at in enumerate(planted)) / len(planted)

    def is_right(other: int, copy: int) -> bool:
        if other >= first_copy:  # another copy: by its original
            other = planted[other - first_copy]
        original = planted[copy - first_copy]
        return other == original or (min(other, original), max(other, original)) in pairs

    with_copy = [pair for pair in pairs if pair[1] >= first_copy]
    precision = sum(is_right(*pair) for pair in with_copy) / len(with_copy)
    print(f"{len(planted)} copies: recall {recall:.4f}, precision {precision:.4f} of {len(with_copy)} pairs")
    assert recall >= 0.95
    assert precision >= 0.95


def test_planted_exam_questions_are_all_found() -> None:
    """Every question that is looked for, in the middle of a medical text; and how many texts without one are taken."""
    config = DecontaminateConfig.model_validate({"sets": [{"name": "exams", "path": str(EXAMS)}]})
    items = read_items(config.sets[0])
    step = Decontaminate(config, items)
    looked_for = [item for item in items if len(units(item.question)) >= config.least_units]
    texts_read = [row["text"][:600] for row in rows() if row["domain"] == "medical" and len(row["text"]) > 200]
    rng = random.Random(0)
    found = 0
    for item in looked_for:
        text = rng.choice(texts_read)
        found += item in [one for one, _ in step.find(f"{text[:300]}\n{item.question}\n{text[300:]}")]
    taken = sum(bool(step.find(text)) for text in texts_read)
    print(f"{found} of {len(looked_for)} found ({len(items)} questions); {taken} of {len(texts_read)} texts have one")
    assert found == len(looked_for) > 1000
    assert taken < 0.02 * len(texts_read)


def test_the_detector_learns_a_cipher_from_labels() -> None:
    """Chinese medical texts beside halves of their sentences, a word for each character, or beside others' halves."""
    rng = random.Random(0)
    long = [row["text"][:500] for row in rows() if row["side"] == "zh" and row["domain"] == "medical"]
    taken = rng.sample([text for text in long if len(text) > 200], 600)

    def answer(text: str) -> str:
        said = [part for part in re.split("(?<=[。！？；])", text) if rng.random() < 0.5]
        return " ".join(f"w{ord(unit[0]):x}" for unit in units("".join(said) or text))

    pairs = []
    for number, text in enumerate(taken):
        pairs.append(Labelled(Pair(text, answer(text)), True, ""))
        pairs.append(Labelled(Pair(text, answer(taken[number - 1])), False, ""))
    learned, fresh = pairs[:840], pairs[840:]
    found, report = fit(learned, features_by(None), DetectorConfig(labels="-", least_recall=0.9), 0, DETECTOR)
    kept = found.probabilities([one.item for one in fresh]) >= found.threshold
    of = {good: [keep for keep, one in zip(kept, fresh, strict=True) if one.good is good] for good in (True, False)}
    stay, gone = sum(of[True]) / len(of[True]), 1 - sum(of[False]) / len(of[False])
    print(f"{stay:.1%} of those that keep stay, {gone:.1%} of those that depart go; on the labels {report.recall:.3f}")
    assert stay >= 0.8 and gone >= 0.5
