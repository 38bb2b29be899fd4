"""The encoding of text files, as configurations name it."""

from __future__ import annotations

import codecs
from typing import Annotated

from pydantic import AfterValidator

AUTO = "auto"


def _known(encoding: str) -> str:
    if encoding != AUTO:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"Python knows no encoding {encoding!r}; for example utf-8, gbk, gb18030, big5") from None
    return encoding


Encoding = Annotated[str, AfterValidator(_known)]
"""`auto`, or a name that Python knows."""
