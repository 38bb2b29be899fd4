"""JSON Lines on disk: metric rows and samples, written so that a crash loses nothing that was reported as written.

Holds the format (one JSON object a line, UTF-8, no NaN) and the three operations on it: append, read, replace.
It leaves out what the rows mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from rayrl.types import Sample


def is_timing(key: str) -> bool:
    """Whether a metric measures the machine and not the learning, so that two runs may differ in it."""
    return key.startswith(("time/", "busy/", "recovery/", "cluster/"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; a file that doesn't exist has none.

    A last line that was torn by a crash is left out. Raises ValueError for any other line that isn't a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut short
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}); repair or remove that line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}; remove that line")
        rows.append(row)
    return rows


def open_rows(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """A file to append rows to. A lone surrogate, which UTF-8 can't hold, becomes its JSON escape."""
    return cast(TextIO, path.open(mode, encoding="utf-8", errors="backslashreplace"))


def append_rows(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows at the end of an open file; when it returns they are on the disk.

    Where the disk fails (OSError) the file is as it was before, so that the rows can be written again.
    """
    data = "".join(_line(row) for row in rows).encode("utf-8", file.errors or "strict")
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    try:
        while data:  # past the file object's buffer, which would write a failed line a second time
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        raise


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of rows beside the old one and put it in its place, so that a reader sees one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with open_rows(beside, "w") as file:
        append_rows(file, rows)
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sample_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row. Raises ValueError where a score isn't a finite number."""
    row = asdict(sample)
    try:
        json.dumps(row, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"sample of prompt {sample.prompt_id!r}, step {sample.step}: a score isn't finite "
            f"(raw {dict(sample.raw)}, normalised {dict(sample.normalised)}, mixed {sample.mixed}); mend its source"
        ) from error
    return row


def evaluation_path(folder: Path, num_trained: int) -> Path:
    """Where a PPO run keeps the held-out samples that it took after `num_trained` steps."""
    return folder / "evaluation" / f"step-{num_trained:06d}.jsonl"


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file (samples.jsonl, evaluation/step-NNNNNN.jsonl)."""
    return [Sample(**row) for row in read_rows(path)]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write one evaluation's samples, whole or not at all."""
    replace_rows(path, [sample_row(sample) for sample in samples])


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
