"""Readers: every format that users have on disk, to rayrl's records (docs/formats.md).

    files.py -> values.py, text.py -> dialogues.py, choices.py, label_tool.py -> read.py
    where       bytes to values       a row to checked messages                  to records

`Read` holds the rows that were taken, where each comes from, and those that weren't with the reason. Left out:
duplicates, held-out splits, tokens.
"""

from __future__ import annotations

from rayrl.data.readers.read import (
    read_comparisons,
    read_conversations,
    read_documents,
    read_prompt_rows,
    read_rankings,
    stream_conversations,
    stream_documents,
)
from rayrl.data.readers.rows import Read, Rejected, check_read, write_rejected

__all__ = [
    "Read",
    "Rejected",
    "check_read",
    "read_comparisons",
    "read_conversations",
    "read_documents",
    "read_prompt_rows",
    "read_rankings",
    "stream_conversations",
    "stream_documents",
    "write_rejected",
]
