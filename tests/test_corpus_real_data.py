"""The steps on real text, medical, general and adverts in Chinese and English. Skipped where the data isn't there.

The numbers that docs/ gives are printed: `pytest -s`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reader_cases import SHARED

from rayrl.config.corpus import CleanConfig, ExtractConfig, LexiconConfig, QualityConfig, SegmentConfig
from rayrl.corpus import minhash
from rayrl.corpus.clean import Clean
from rayrl.corpus.language import identify
from rayrl.corpus.lexicon import Extract, Lexicon, Matcher
from rayrl.corpus.normalise import normalise
from rayrl.corpus.quality import Labelled, fit
from rayrl.corpus.records import texts
from rayrl.corpus.segments import Segments

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


def test_most_medical_text_stays_and_most_other_goes() -> None:
    config = ExtractConfig(
        lexicons=[LexiconConfig(path="medical-en"), LexiconConfig(path=str(TERMS))], thresholds={"zh": 0.02, "en": 0.03}
    )
    sides = {row["id"]: (row["side"], "medical" if row["domain"] == "medical" else "other") for row in rows()}
    counted = [row for row in rows() if row["domain"] != "mixed"]
    table = texts(
        {**{key: row[key] for key in ("id", "text", "language", "genre")}, "document": row["id"]} for row in counted
    )
    total: Counter[tuple[str, str]] = Counter()
    for row in counted:
        total[sides[row["id"]]] += len(row["text"])
    extracted = Extract(config, Matcher(Lexicon.load(config)))(table)
    segmented = Segments(SegmentConfig())(extracted.table)
    cleaned = Clean(CleanConfig(mask=False), None)(segmented.table)
    shares = {}
    for name, kept in (("extract", extracted.table), ("clean", cleaned.table)):
        chars: Counter[tuple[str, str]] = Counter()
        for one, text in zip(kept["document"].to_pylist(), kept["text"].to_pylist(), strict=True):
            chars[sides[one]] += len(text)
        shares = {side: chars[side] / total[side] for side in sorted(total)}
        print(name, {" ".join(side): round(share, 3) for side, share in shares.items()})
    for side in ("zh", "en"):
        assert shares[side, "medical"] >= 0.9
        assert shares[side, "other"] <= 0.1


def test_the_classifier_tells_medical_text_of_sources_that_it_never_saw() -> None:
    labels = [
        Labelled(row["text"], row["domain"] == "medical", row["source"].partition(":")[0])
        for row in rows()
        if row["domain"] != "mixed"
    ]
    _, report = fit(labels, QualityConfig(labels=str(CORPUS)), seed=0)
    print(f"held out {report.groups_held_out}: recall {report.recall:.3f}, precision {report.precision:.3f}")
    fitted = {one.group for one in labels} - set(report.groups_held_out)
    assert len(report.groups_held_out) >= 4 and len(fitted) >= 4
    assert sum(report.held_out.values()) == sum(one.group in report.groups_held_out for one in labels)
    assert report.recall >= 0.85
    assert report.precision >= 0.85


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
