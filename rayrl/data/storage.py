"""Files here and in object stores under one kind of path: a local one, or s3://, gs://, hdfs:// (pyarrow.fs).

A file is never half there: a local one is written beside its place and renamed, an object is uploaded when it is whole.
Options of a store follow a question mark (`s3://bucket/corpus?region=cn-north-1`), so that one in an object's name is
written `%3F`. Left out: credentials, which each store's own environment variables and files give.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from rayrl.errors import UserError

DRAFT = ".draft"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file that is there. Example: Entry("s3://bucket/books/a.jsonl", 1048576, 1700000000000000000)"""

    uri: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """A file or folder. Example: Place("s3://bucket/corpus") / "read" / "manifest.json\""""

    uri: str

    @classmethod
    def of(cls, path: str | Path) -> Place:
        """A local path becomes absolute. Raises UserError where no store of that kind can be reached."""
        text = str(path)
        if text.startswith("file://"):
            text = unquote(text.removeprefix("file://"))
        if "://" not in text:
            return cls(str(Path(text).expanduser().absolute()))
        plain, mark, options = text.partition("?")
        scheme, _, rest = plain.partition("://")
        bucket = rest.partition("/")[0]
        if not bucket:
            raise UserError(f"{text} names no bucket or host")
        if scheme == "s3" and "@" in bucket:
            raise UserError("a path holds an access key: leave it to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        place = cls(f"{plain.rstrip('/')}{mark}{options}")
        place._where()
        return place

    @property
    def local(self) -> Path | None:
        """The path, where it is on this machine's file system."""
        return Path(self.uri) if "://" not in self.uri else None

    @property
    def plain(self) -> str:
        """The path without the store's options."""
        return self._parts()[0]

    @property
    def name(self) -> str:
        """The last part."""
        return self.plain.rsplit("/", 1)[-1]

    def __truediv__(self, name: str) -> Place:
        path, mark, options = self._parts()
        return Place(f"{path.rstrip('/')}/{name if self.local is not None else _quoted(name)}{mark}{options}")

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        filesystem, path = self._where()
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether a file is there."""
        filesystem, path = self._where()
        return filesystem.get_file_info(path).type == fs.FileType.File

    def files(self, recursive: bool = False) -> list[Entry]:
        """Files in the folder by their paths, without hidden ones and drafts; none where there is no folder.

        Raises OSError, and UserError where a name isn't UTF-8. A folder that is linked to is read once.
        """
        if self.local is not None:
            return sorted(_local_files(self.local, recursive), key=lambda entry: entry.uri)
        filesystem, path = self._where()
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
        inside = [(info, info.path[len(path) :].lstrip("/")) for info in found if info.type == fs.FileType.File]
        return sorted(
            (
                Entry((self / name).uri, info.size, info.mtime_ns or 0)
                for info, name in inside
                if not any(map(_is_hidden, name.split("/")))
            ),
            key=lambda entry: entry.uri,
        )

    def entry(self) -> Entry:
        """The file's size and time of change. Raises FileNotFoundError."""
        filesystem, path = self._where()
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(self.uri)
        return Entry(self.uri, info.size, info.mtime_ns or 0)

    def open(self) -> pa.NativeFile:
        """For reading from any position. Raises OSError."""
        filesystem, path = self._where()
        return filesystem.open_input_file(path)

    def read_bytes(self) -> bytes:
        """The whole file. Raises OSError."""
        with self.open() as stream:
            return bytes(stream.read())

    def read_json(self) -> Any:
        """The file's value. Raises OSError, ValueError."""
        return json.loads(self.read_bytes())

    @contextmanager
    def written(self) -> Iterator[pa.NativeFile]:
        """A stream for the whole file, which is in place when the block ends without an error."""
        filesystem, path = self._where()
        if self.local is None:
            with tempfile.NamedTemporaryFile() as copy:
                with pa.OSFile(copy.name, "wb") as stream:
                    yield stream
                _upload(copy, filesystem, path)
            return
        draft = f"{path}.{uuid.uuid4().hex[:8]}{DRAFT}"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with filesystem.open_output_stream(draft, compression=None) as stream:
                yield stream
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise

    def write_bytes(self, content: bytes) -> None:
        """Replaces the file whole. Raises OSError."""
        with self.written() as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        """Replaces the file whole. Raises OSError."""
        self.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))

    def move(self, target: Place) -> None:
        """Gives the file another place in the same store; nothing where it is there already and this one is gone."""
        filesystem, path = self._where()
        if not self.is_file() and target.is_file():
            return
        if target.local is not None:
            target.local.parent.mkdir(parents=True, exist_ok=True)
        filesystem.move(path, target._where()[1])

    def remove(self) -> None:
        """Removes the file or folder with all that it holds; nothing where there is none."""
        filesystem, path = self._where()
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            filesystem.delete_file(path)

    def sweep(self) -> None:
        """Removes drafts that killed processes left in the folder. Nobody may be writing there."""
        if self.local is not None:
            for draft in self.local.glob(f"*{DRAFT}"):
                draft.unlink(missing_ok=True)

    def _parts(self) -> tuple[str, str, str]:
        """Path, question mark and options of a URI; a local path has no options."""
        return (self.uri, "", "") if self.local is not None else self.uri.partition("?")

    def _where(self) -> tuple[fs.FileSystem, str]:
        return _where(self.uri)


@lru_cache(maxsize=4096)
def _where(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" not in uri:
        return _local(), uri
    path, mark, options = uri.partition("?")
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    filesystem, root = _remote(f"{scheme}://{bucket}{mark}{options}")
    return filesystem, f"{root}/{_unquoted(key)}" if key else root


@lru_cache(maxsize=1)
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=64)
def _remote(root: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{root} can't be used: {str(error).splitlines()[0]}") from error
    return filesystem, path.rstrip("/")


def _upload(content: IO[bytes], filesystem: fs.FileSystem, path: str) -> None:
    try:
        with filesystem.open_output_stream(path, compression=None) as stream:
            shutil.copyfileobj(content, stream, _CHUNK)
    except BaseException:  # what was sent is there all the same
        with suppress(OSError):
            filesystem.delete_file(path)
        raise


def _local_files(folder: Path, recursive: bool) -> Iterator[Entry]:
    if not folder.exists():
        return
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if recursive and not _is_hidden(name))
        for name in names:
            path = os.path.join(root, name)
            if _is_hidden(name) or not os.path.isfile(path):
                continue
            if not _is_unicode(path):
                raise UserError(f"{root} holds a file whose name isn't UTF-8, {os.fsencode(name)!r}; rename it")
            found = os.stat(path)
            yield Entry(path, found.st_size, found.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(DRAFT)


def _is_unicode(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _quoted(name: str) -> str:
    """A name in a store, in which a question mark can't be taken for the beginning of options."""
    return name.replace("%3F", "%253F").replace("?", "%3F")


def _unquoted(key: str) -> str:
    return key.replace("%3F", "?").replace("%253F", "%3F")
