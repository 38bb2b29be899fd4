"""What the classifier of the stage `clean` tells good texts by.

HuatuoGPT-II trains one on texts that ChatGPT flagged as adverts or bad writing (appendix A). Here: unit 1- and 2-grams
and character 3-grams, hashed (classifier.py fits and measures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayrl.corpus.classifier import Labelled, hashed, read_labels
from rayrl.corpus.shingles import mixed
from rayrl.data.units import units

KEY = "clean.quality"
_MAX_CHARS = 4000


def read_texts(path: str) -> list[Labelled[str]]:
    """JSONL of `text`, `label` (good or bad) and, if wanted, `group`. Raises UserError for other rows."""
    return read_labels(path, f"{KEY}.labels", ("text",), lambda texts: texts[0], {"good": True, "bad": False})


def features(texts: Sequence[str]) -> Any:
    """Sparse float32 [N, NUM_FEATURES], rows of length 1."""
    from pandas.util import hash_array

    cut = [text[:_MAX_CHARS] for text in texts]
    words = [units(text) for text in cut]
    flat = np.array([word for row in words for word in row], dtype=object)
    hashes = hash_array(flat) if len(flat) else np.empty(0, dtype=np.uint64)  # SipHash
    rows, begin = [], 0
    for text, row in zip(cut, words, strict=True):
        singles = hashes[begin : begin + len(row)]
        rows.append(np.concatenate([singles, mixed(mixed(singles[:-1]) + singles[1:]), _threes(text)]))
        begin += len(row)
    return hashed(rows)


def _threes(text: str) -> np.ndarray:
    """uint64 [n]: hashes of all sequences of three characters, spaces left out."""
    codes = np.frombuffer("".join(text.split()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    found = np.zeros(max(0, len(codes) - 2), dtype=np.uint64)
    for at in range(3):
        found = mixed(found + codes[at : at + len(found)] + np.uint64(1))
    return found
