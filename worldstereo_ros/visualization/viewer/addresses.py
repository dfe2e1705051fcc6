"""Addresses that the viewer can listen on."""

from __future__ import annotations

import errno
import socket

from worldstereo_ros.utils.errors import WorldStereoError


class AddressError(WorldStereoError, OSError):
    """An address or port that the viewer cannot listen on."""


def check_address(host: str, port: int) -> None:
    """Checks that the address can be listened on.

    viser silently tries the next thousand ports, and hangs if none of them works.

    Raises:
        AddressError: the port is not valid, taken or privileged, or the address is not of this machine.
    """
    if not 0 <= port <= 65535:
        raise AddressError(f"The port {port} is not valid; expected a number from 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise AddressError(
            f"'{host}' is not an address of this machine. Use --host 127.0.0.1, or 0.0.0.0 for all networks."
        ) from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_taken(host, port) from None
            if error.errno == errno.EACCES:
                raise AddressError(f"Port {port} needs root privileges. Use one above 1023: --port 8080.") from None
            raise AddressError(f"Cannot listen on {host}:{port}: {error.strerror}. Use --host 127.0.0.1.") from None


def port_taken(host: str, port: int) -> AddressError:
    """The error of a port that another program listens on."""
    return AddressError(
        f"Port {port} on {host} is taken by another program. Use another one, such as --port {port + 1}."
    )
