"""`Host` and `Origin`, read as RFC 3986 and RFC 6454 write them and in no other way.

Lenient readers find a known name in `evil@127.0.0.1` or `localhost#x`. What is not exactly a host with or without a port is no
name here.
"""

import ipaddress
import re

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[0-9a-z]([0-9a-z._-]*[0-9a-z])?)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/]+)", re.IGNORECASE | re.ASCII)
_PORTS = {"http": 80, "https": 443}


def host_and_port(host: str) -> tuple[str, int | None] | None:
    """The name or address in a `Host` header, in lower case and without brackets, and the port; None where it is neither."""
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    name, port = match["name"].lower(), match["port"]
    if port is not None and not 1 <= int(port) <= 65_535:
        return None
    if name.startswith("["):
        try:
            name = str(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return None
    return name, None if port is None else int(port)


def is_address(name: str) -> bool:
    """Whether a name without brackets is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str, host: str) -> bool:
    """Whether the page of an `Origin` came from this `Host`; the scheme's own port may be written or not."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    usual = _PORTS[match["scheme"].lower()]
    sides = [host_and_port(match["host"]), host_and_port(host)]
    written = [None if side is None else (side[0], side[1] or usual) for side in sides]
    return written[0] is not None and written[0] == written[1]
