"""Where ranks meet: a port that stays rank 0's until they do."""

from __future__ import annotations

import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from rayrl.models.rendezvous import _served, reserve

LIMIT = timedelta(seconds=60)


def test_a_reserved_port_is_nobody_elses_and_early_ranks_wait_at_it() -> None:
    port = reserve("127.0.0.1")
    with pytest.raises(OSError, match="in use") as caught:
        socket.create_server(("127.0.0.1", port))
    assert caught.value.errno == errno.EADDRINUSE
    with ThreadPoolExecutor(1) as beside:
        early = beside.submit(TCPStore, "127.0.0.1", port, timeout=LIMIT)
        served = _served("127.0.0.1", port, LIMIT)
        served.set("key", "value")
        assert early.result().get("key") == b"value"
    with pytest.raises(OSError, match="in use"):
        _served("127.0.0.1", port, LIMIT)


def test_a_port_that_was_named_by_another_process_is_served_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    _served("127.0.0.1", port, LIMIT).set("key", "value")


def test_behind_an_address_translation_a_port_is_looked_up_only() -> None:
    port = reserve("203.0.113.5")  # of documentation: no interface has it
    socket.create_server(("127.0.0.1", port)).close()
