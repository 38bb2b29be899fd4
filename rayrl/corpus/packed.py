"""Packed files as streams: of a damaged one, all that comes before the damage.

Arrow unpacks, and loses what it had of a read that fails: so the file is then read again, the end in small steps.
"""

from __future__ import annotations

import io

import pyarrow as pa

_CHUNK = 1 << 16
"""What Arrow takes of the packed file at one time."""
_STEP = 256
DAMAGED = "the file is cut off or damaged"


class Damaged(Exception):
    """The file is cut off, or isn't what it should be, from here on."""


class Watched:
    """A stored file as Arrow reads it, through which the store's failures are told from the file's faults."""

    closed = False

    def __init__(self, raw: pa.NativeFile) -> None:
        self._raw = raw
        self._failure: OSError | None = None
        self.step = 1 << 62
        """Most bytes of a read."""

    def read(self, size: int = -1) -> bytes:
        """As the file."""
        try:
            return bytes(self._raw.read(min(size, self.step) if size >= 0 else None))
        except OSError as error:
            self._failure = error
            raise

    def seek(self, position: int, whence: int = 0) -> int:
        """As the file."""
        return int(self._raw.seek(position, whence))

    def tell(self) -> int:
        """As the file."""
        return int(self._raw.tell())

    def close(self) -> None:
        """The file stays open."""

    def check(self) -> None:
        """Raises OSError where the store has failed."""
        if self._failure is not None:
            raise self._failure


class Unpacked(io.RawIOBase):
    """The stream that is packed in a file. Reading raises Damaged at the damage, OSError where the store fails."""

    def __init__(self, raw: pa.NativeFile, codec: str) -> None:
        self._raw, self._codec = raw, codec
        self._given = self._read_to = 0
        self._damage: str | None = None
        self._over = False
        self._begin()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As much as there is, and room for."""
        if self._damage is None:
            try:
                size = int(self._stream.readinto(buffer))
            except OSError as error:
                self._watched.check()
                self._damage = str(error)
                self._begin_again()
            else:
                self._given += size
                self._read_to = self._watched.tell()
                return size
        part = self._before_damage(min(len(buffer), _CHUNK))
        if not part:
            raise Damaged(self._damage)
        buffer[: len(part)] = part
        return len(part)

    def _begin(self) -> None:
        self._raw.seek(0)
        self._watched = Watched(self._raw)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._watched, mode="r"), self._codec)

    def _begin_again(self) -> None:
        """To where the last whole read ended."""
        self._begin()
        left = self._given
        while left:
            if self._watched.tell() + 2 * _CHUNK > self._read_to:
                self._watched.step = _STEP
            left -= len(self._stream.read(min(left, _CHUNK)))
        self._watched.step = _STEP

    def _before_damage(self, size: int) -> bytes:
        """At most so much."""
        found = bytearray()
        try:
            while not self._over and len(found) < size:
                part = self._stream.read(1)
                found += part
                self._over = not part
        except OSError:
            self._watched.check()
            self._over = True
        return bytes(found)
