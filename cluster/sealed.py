"""Secrets on their way into a job's processes, readable only to who has the cluster's token.

Ray keeps a job's environment variables in its job table and writes them to log files that every user of a node may
read. So secret values travel in one variable, encrypted under the cluster's token, and each process of the job opens
it as it starts. Who has the token can open it, as who has the token can run any code there. Left out: clusters without
tokens, whose jobs can have no secrets. Every command imports this: Ray and cryptography are loaded where they are used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping

from cluster.errors import ClusterError

VARIABLE = "RAYRL_SEALED_ENV"
HOOK = "cluster.sealed.open_env"
"""What Ray calls in each worker; a job's driver does it by itself (jobs.py)."""
_SALT_BYTES = 16


def seal(values: Mapping[str, str]) -> dict[str, object]:
    """The part of a runtime environment that gives a job these variables; {} where this process knows no token."""
    token = cluster_token()
    if token is None:
        return {}
    from cryptography.fernet import Fernet

    salt = os.urandom(_SALT_BYTES)
    text = Fernet(_key(token, salt)).encrypt(json.dumps(dict(values)).encode())
    return {
        "env_vars": {VARIABLE: base64.urlsafe_b64encode(salt).decode() + text.decode()},
        "worker_process_setup_hook": HOOK,
    }


def open_env() -> None:
    """Puts what is sealed in this process's environment into it, value by value. Raises ClusterError if it can't."""
    sealed = os.environ.get(VARIABLE)
    if sealed is None:
        return
    from cryptography.fernet import Fernet, InvalidToken

    length = len(base64.urlsafe_b64encode(bytes(_SALT_BYTES)))
    try:
        key = _key(cluster_token() or "", base64.urlsafe_b64decode(sealed[:length]))
        os.environ.update(json.loads(Fernet(key).decrypt(sealed[length:].encode())))
    except InvalidToken:
        raise ClusterError(
            "the job's secrets can't be opened: they were sealed with another token than this cluster's"
        ) from None


def cluster_token() -> str | None:
    """The token with which this process speaks to Ray, where there is one."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    header = next(iter(get_auth_headers_if_auth_enabled({}).values()), None)
    return str(header).removeprefix("Bearer ") if header else None


def _key(token: str, salt: bytes) -> bytes:
    return base64.urlsafe_b64encode(hashlib.scrypt(token.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32))
