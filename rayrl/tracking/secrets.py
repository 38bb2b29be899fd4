"""Masks secrets in a configuration before it is shown or sent anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "•••"
_SECRET_KEY = re.compile(r"(key|keys|token|secret|secrets|password|passwords|passwd|credential|credentials)$", re.I)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def masked(value: Any) -> Any:
    """A copy of nested mappings, lists and scalars in which secrets are masked.

    A value is one when its key ends in key, token, secret, password or credential; so is `user:password@` in a URL.
    Example: {"judge": {"api_key": "sk-1"}} -> {"judge": {"api_key": "•••"}}
    """
    if isinstance(value, Mapping):
        return {k: MASK if _SECRET_KEY.search(str(k)) and v is not None else masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    if isinstance(value, str):
        return _USER_IN_URL.sub(MASK, value)
    return value
