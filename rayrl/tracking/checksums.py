"""Whether a folder is still what was written: SHA256SUMS in it lists every file, as `sha256sum -c` reads it.

Files that are missing, changed or not on the list are found, and so is a damaged list: each of its lines must be in the
very form, name a file that is there, and all files must be named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from rayrl.heartbeat import beat

LIST = "SHA256SUMS"
_PART_BYTES = 1 << 24
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def checksums(folder: Path, part: int = 0, parts: int = 1) -> dict[str, str]:
    """SHA-256 by relative path, of every `parts`-th file from `part` on: ranks share the work."""
    return {name: sha256(folder / name) for name in _files(folder)[part::parts]}


def write_list(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes the list. Raises OSError where `sums` aren't those of exactly the files that are there."""
    if sorted(sums) != _files(folder):
        raise OSError(f"{folder} changed while it was written: {sorted(set(sums) ^ set(_files(folder)))[:3]}")
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (folder / LIST).write_text(text, encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder, in words; None where nothing is."""
    try:
        text = (folder / LIST).read_bytes().decode("utf-8")
    except FileNotFoundError:
        return f"it has no {LIST}"
    except UnicodeDecodeError:
        return f"{LIST} is damaged"
    matches = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    if not text.endswith("\n") or not all(matches):
        return f"{LIST} is damaged"
    listed = {match[2]: match[1] for match in matches if match}
    there = _files(folder)
    if sorted(listed) != there:
        differ = sorted(set(listed) ^ set(there))
        return f"{differ[0]} is missing" if differ[0] in listed else f"{differ[0]} isn't in {LIST}"
    for name, digest in listed.items():
        if sha256(folder / name) != digest:
            return f"{name} has changed"
    return None


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / LIST)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def sha256(path: Path) -> str:
    """Of one file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
            beat()
    return digest.hexdigest()
