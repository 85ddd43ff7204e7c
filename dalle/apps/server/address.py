"""Whether the server may listen at an address, asked before the model is loaded, which takes longer."""

from __future__ import annotations

import errno
import socket


def check_address(host: str, port: int) -> None:
    """Check that an address is one of this machine and that its port is free.

    Raises:
        ValueError: it is not; the message says what to give instead.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # UnicodeError: a label of the name is too long
        raise ValueError(f"{host[:100]!r} is no address: give another with --host, such as 127.0.0.1") from None
    for family, kind, protocol, _, place in places:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:  # a kernel without IPv6, whose addresses asyncio leaves out as well
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio: a port just left is free
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(place)
            except OSError as error:
                raise ValueError(_reason(error, host, port)) from None


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: give another with --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is for the administrator: give one from 1024 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: give another with --host, such as 127.0.0.1"
    return f"{host}, port {port}: {error.strerror or error}: give another with --host or --port"
