"""Where a source lies: a file, a folder, a built-in set, or a Hugging Face dataset; and the values it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl.config.sources import SourceConfig
from rayrl.data.readers.values import TextAs, Values, dataset_values, file_values
from rayrl.errors import UserError

ASSETS = Path(__file__).parents[2] / "assets"
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz")
NOT_DATA = (
    "rejected.jsonl",
    "manifest.json",
    "started.json",
    "summary.json",
    "metrics.jsonl",
    "samples.jsonl",
    "hits.jsonl",
    "labels.jsonl",
    "quality.json",
    "detector.json",
)


@dataclass(frozen=True)
class Part:
    """A source's file, or a dataset."""

    name: str
    """What records call it."""
    stem: str
    """What tells it from the source's other files; empty where it is the only one."""
    path: Path | None
    """None for a dataset."""
    values: Values


def builtin_sets() -> dict[str, Path]:
    """Built-in data sets by name, such as `sft-distilled-en`."""
    files = [path for path in sorted(ASSETS.iterdir()) if path.suffix in (".jsonl", ".parquet")]
    return {path.stem.replace("_", "-"): path for path in files}


def parts(source: SourceConfig, text: TextAs | None = None) -> Iterator[Part]:
    """The source's files, in order of their paths, each with its values.

    `text`: how plain text is taken; by default a file by paragraphs, and a folder's files each as a whole.
    Raises UserError where there is nothing, or where something can't be opened.
    """
    if source.path.startswith("hf:"):
        yield Part(source.path, "", None, dataset_values(_hub_dataset(source)))
        return
    path = builtin_sets().get(source.path, Path(source.path).expanduser())
    if not path.exists():
        known = ", ".join(builtin_sets())
        raise UserError(f"Source {source.name!r}: there is no {path} (built-in sets: {known}).")
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        yield Part(str(path), "", None, dataset_values(_saved_dataset(path, source)))
    elif path.is_dir():
        files = _files(path)
        if not files:
            raise UserError(f"Source {source.name!r}: the folder {path} holds no {', '.join(_SUFFIXES)} file.")
        for file in files:
            stem = file.relative_to(path).as_posix().removesuffix(file.suffix)
            yield Part(str(file), stem, file, file_values(file, source.encoding, text or "whole"))
    else:
        yield Part(str(path), "", path, file_values(path, source.encoding, text or "paragraphs"))


def _files(folder: Path) -> list[Path]:
    """Data files of a folder and its folders; hidden files, and what stages write beside their data, aren't."""
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if path.suffix in _SUFFIXES and path.name not in NOT_DATA and path.is_file():
            found += [] if any(part.startswith((".", "_")) for part in inside) else [path]
    return sorted(found)


def _hub_dataset(source: SourceConfig) -> Any:
    import datasets

    name, _, subset = source.path.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(name, subset or None, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"Source {source.name!r}: the dataset {name!r} can't be loaded: {reason}") from error


def _saved_dataset(path: Path, source: SourceConfig) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"Source {source.name!r}: {path} can't be read as a saved dataset: {error}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if source.split not in found:
        raise UserError(f"Source {source.name!r}: {path} has no split {source.split!r}, but {', '.join(found)}.")
    return found[source.split]
