"""Answers on disk, made once and scored many times: keyed by what made them and by what was asked.

    ROOT/NAME-KEY/settings.json   what made them: the model's fingerprint, decoding settings
    ROOT/NAME-KEY/answers.jsonl   a line an answer

KEY is a hash of the settings; a question's key is a hash of its messages. So a model that was trained on, or another
temperature, has a folder of its own, and evaluations that share the root make no answer twice. The texts are patients':
the folder is the run's own, and nothing here sends them anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rayrl.data.lock import only_run
from rayrl.tracking.rows import append_rows, open_rows, read_rows
from rayrl.types import Message

SETTINGS, ANSWERS = "settings.json", "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """What came of one question. Example: Answer("9f...", "Rest it.", 4, True)"""

    key: str
    text: str | None
    """None where there is no answer, `reason` says why."""
    num_tokens: int | None = None
    """None where an endpoint didn't say."""
    ended: bool | None = None
    """Whether it closed with an end token (False: cut)."""
    reason: str | None = None
    dialogue: list[Message] | None = None
    """Of a consultation: the whole talk."""
    logprobs: list[float] | None = None
    """Of an exam's options: sum of log-probabilities of each, in nats."""


def question_key(asked: Any) -> str:
    """32 hexadecimal digits of anything that JSON holds: messages, a case with its patient, an exam's question."""
    text = json.dumps(asked, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class AnswerStore:
    """One model's answers under one set of settings. Use as a context; another process has to wait for its end."""

    def __init__(self, root: Path, name: str, settings: Mapping[str, Any]) -> None:
        """`name`: a readable part of the folder's name. Entering raises UserError where another run has it open."""
        key = question_key(settings)[:16]
        known = sorted(root.glob(f"*-{key}")) if root.is_dir() else []
        self.folder = known[0] if known else root / f"{name}-{key}"
        self._settings = settings
        self._file: TextIO
        self._known: dict[str, Answer] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(only_run(self.folder, "answers"))
            self._write_settings()
            path = self.folder / ANSWERS
            _mend(path)
            self._known = {row["key"]: Answer(**row) for row in read_rows(path)}
            self._file = stack.enter_context(open_rows(path, "a"))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, where)

    def get(self, key: str) -> Answer | None:
        """The answer, where there is one."""
        return self._known.get(key)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those that have no answer yet, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._known]

    def add(self, answers: Sequence[Answer]) -> None:
        """Keeps answers; when it returns they are on the disk."""
        rows = [{k: v for k, v in asdict(one).items() if v is not None or k == "text"} for one in answers]
        append_rows(self._file, rows)
        self._known |= {one.key: one for one in answers}

    def _write_settings(self) -> None:
        text = json.dumps(self._settings, indent=2, ensure_ascii=False) + "\n"
        draft = self.folder / f"{SETTINGS}.draft"
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(draft, self.folder / SETTINGS)


def _mend(path: Path) -> None:
    """Cuts off a last line that a killed process left half written: the next one would be joined to it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
