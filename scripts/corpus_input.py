"""A corpus of any size from one JSONL file, by repetition with variation: for measurements, not for training.

    .venv/bin/python scripts/corpus_input.py ../shared/data/corpus_raw.jsonl OUT.jsonl --mb 100

In each round every text gets its round and number in front, and its sentences in another order, so that no text is the
same as another and few are near it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

_SENTENCE = re.compile(r"[^。！？.!?\n]*[。！？.!?\n]*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--mb", type=float, default=100)
    args = parser.parse_args()
    print(f"{write(args.source, args.output, int(args.mb * 1e6)) / 1e6:.1f} MB in {args.output}")


def write(source: Path, output: Path, num_bytes: int) -> int:
    """Writes about so many bytes; how many they are."""
    written = 0
    with output.open("w", encoding="utf-8") as out:
        for line in _lines(source):
            out.write(line)
            written += len(line.encode())
            if written >= num_bytes:
                break
    return written


def _lines(source: Path) -> Iterator[str]:
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    round_number = 0
    while True:
        for number, row in enumerate(rows):
            text = row["text"]
            if round_number:
                parts = [part for part in _SENTENCE.findall(text) if part]
                random.Random(f"{round_number} {number}").shuffle(parts)
                text = f"{round_number}-{number} " + "".join(parts)
            yield json.dumps({**row, "text": text}, ensure_ascii=False) + "\n"
        round_number += 1


if __name__ == "__main__":
    main()
