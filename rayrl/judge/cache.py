"""Answers by content: what was once received from a model is never asked for again, by any run that shares the file.

One SQLite file holds the answers and the ledger of what they cost (budget.py), so that an answer and its cost are
committed together. One process at a time owns the file; another one is told so. The file may quote patients, so only
its owner may read it. Left out: expiry; delete the file to forget.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrl.errors import UserError
from rayrl.judge.budget import Cost, Ledger
from rayrl.types import Message

_VERSION = 1
_ANSWERS = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    call INTEGER NOT NULL REFERENCES calls (id)
) WITHOUT ROWID
"""


def request_key(model: str, messages: Sequence[Message], settings: Mapping[str, Any]) -> str:
    """64 hexadecimal digits, the same for equal requests. `settings`: everything else that shapes the answer."""
    content = [model, [[message["role"], message["content"]] for message in messages], sorted(settings.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Store:
    """The cache file, open and owned by this process."""

    def __init__(self, path: str | Path, wait_s: float = 30.0) -> None:
        """Opens or makes the file, waiting `wait_s` for another process to let it go.

        Raises UserError where it doesn't, or where the file is something else.
        """
        self.path = Path(path).expanduser().absolute()
        self._database = _open(self.path, wait_s)
        self.flying: dict[str, asyncio.Task[str]] = {}
        """Requests under way by key, of all clients: equal ones are sent once."""
        self.ledger = Ledger(self._database)

    def answer(self, key: str) -> str | None:
        """The answer to that request, if it was ever received."""
        row = self._database.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def receive(self, number: int, real: Cost, key: str, model: str, text: str) -> None:
        """Commits an answer together with what its request `number` really cost."""
        insert = "INSERT OR REPLACE INTO answers (key, model, text, call) VALUES (?, ?, ?, ?)"
        self.ledger.settle(number, real, insert, (key, model, text, number))

    def close(self) -> None:
        """Lets the file go."""
        self._database.close()


def _open(path: Path, wait_s: float) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(path, timeout=wait_s)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"judge.cache: {path} can't be made or opened: {error}") from error
    try:
        # Owned exclusively: reservations of a process that still runs must not be taken for a killed one's. It also
        # spares WAL its shared memory, which network file systems lack.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN EXCLUSIVE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version != _VERSION and (version or tables):
            raise UserError(f"judge.cache: {path} isn't a judge's cache of this version; name another file")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute(_ANSWERS)
        database.commit()
    except sqlite3.DatabaseError as error:
        database.close()
        if "locked" in str(error):
            raise UserError(f"judge.cache: another run holds {path}; wait for it, or name another file") from error
        raise UserError(f"judge.cache: {path} can't be used as a judge's cache: {error}; name another file") from error
    except UserError:
        database.close()
        raise
    return database
