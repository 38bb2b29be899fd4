"""Where the ranks of a process group meet: on rank 0's address alone.

torch's own rendezvous listens on every interface of rank 0's machine, and anybody who reaches it can disturb the group.
Left out: gloo's and NCCL's own connections, whose interface their environment variables name (cluster/session.py).
"""

from __future__ import annotations

import errno
import socket
from datetime import timedelta

import torch
from torch.distributed import TCPStore


def init_process_group(backend: str, rank: int, world_size: int, address: str, port: int, timeout: timedelta) -> None:
    """Joins this process to the group that meets at `address`, an address of rank 0's machine."""
    store = _served(address, port, timeout) if rank == 0 else TCPStore(address, port, timeout=timeout)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _served(address: str, port: int, timeout: timedelta) -> TCPStore:
    def store(listening: int | None) -> TCPStore:
        return TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listening
        )

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return store(None)  # no interface has it, as behind an address translation
    with listener:
        served = store(listener.fileno())
        listener.detach()  # the store's own from here on
    return served
