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

_reserved: dict[int, socket.socket] = {}
"""Sockets of this process by port, until a group meets there. They don't listen, so that ranks that come early are
refused and try again, within their own limit."""


def reserve(address: str) -> int:
    """A port of `address` for a group whose rank 0 this process will be; nobody is given it meanwhile.

    A port that was only looked up may be another's by the time that rank 0 has loaded its libraries: every connection
    that a machine opens takes one of the same range.
    """
    held = socket.socket(_family(address))
    try:
        held.bind((address, 0))
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        with socket.create_server(("127.0.0.1", 0)) as listener:  # see `_served`: it can only be looked up
            return int(listener.getsockname()[1])
    port = int(held.getsockname()[1])
    _reserved[port] = held
    return port


def init_process_group(backend: str, rank: int, world_size: int, address: str, port: int, timeout: timedelta) -> None:
    """Joins this process to the group that meets at `address`, an address of rank 0's machine."""
    store = _served(address, port, timeout) if rank == 0 else TCPStore(address, port, timeout=timeout)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _served(address: str, port: int, timeout: timedelta) -> TCPStore:
    def store(listening: int | None) -> TCPStore:
        return TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listening
        )

    listener = _reserved.pop(port, None)
    if listener is not None:
        listener.listen()
    else:
        try:
            listener = socket.create_server((address, port), family=_family(address))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return store(None)  # no interface has it, as behind an address translation
    with listener:
        served = store(listener.fileno())
        listener.detach()  # the store's own from here on
    return served


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
