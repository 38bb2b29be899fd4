"""Tells a value that looks like a secret, so that none gets into a configuration: those are written down and shown.

By the key's name, by the forms that services give their keys, and by a password in a URL. Left out: masking what is
shown all the same (rayrl/tracking/secrets.py).
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_KEY = re.compile(
    r"(^|[._-])((api|access|secret|private)_?key|token|password|passwd|secret|credentials?)$", re.IGNORECASE
)
_VALUE = re.compile(
    r"\b(sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abprs]-[\w-]{10,}|A(KIA|SIA)[A-Z0-9]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_OF_REFERENCES = "cluster.kubernetes."
"""Below it keys name Secrets and what is in them."""


def looks_secret(key: str, value: object) -> bool:
    """Whether the text under a dotted key should be an environment variable's.

    Example: looks_secret("rewards.mine.options.api_key", "abc") -> True
    """
    if not isinstance(value, str) or not value:
        return False
    if _KEY.search(key) and not key.startswith(_OF_REFERENCES):
        return True
    return bool(_VALUE.search(value)) or ("://" in value and _password(value))


def _password(text: str) -> bool:
    try:
        return bool(urlsplit(text).password)
    except ValueError:  # not a URL after all
        return False
