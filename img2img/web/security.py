"""Which requests are accepted, and of what size: ASGI middleware before the page and the API."""

import contextlib
import ipaddress
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.errors import InputError
from img2img.web.limits import RefusedError

MULTIPART = 65_536
"""What a form adds to the image in it."""

DRAIN = 4
"""A refused body is read on, and thrown away, up to this many times the bound ..."""

DRAIN_SECONDS = 10.0
"""... and for no longer than this."""

HEADERS = {
    # Files of this service and images that the page has made, and nothing else: no inline script or style, no string that
    # becomes HTML or a script, no other host.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class SecurityMiddleware:
    """Refuses requests by foreign names, from foreign pages and of too many bytes; sets the security headers.

    Args:
        app: what is guarded.
        hosts: the names under which the service may be reached. With one of them in `Host` a web page elsewhere, whose name
            was pointed at this machine (DNS rebinding), is refused.
        any_address: reaching it by an IP address is fine too; names alone can be rebound.
        body_bytes: of a request's body.
        body_seconds: for the body to arrive.
        larger: other bytes and seconds for the bodies of some paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        any_address: bool,
        body_bytes: int,
        body_seconds: float = math.inf,
        larger: Mapping[str, tuple[int, float]] = {},
    ) -> None:
        self.app, self._hosts, self._any_address = app, frozenset(h.lower() for h in hosts), any_address
        self._usual, self._larger = (body_bytes, body_seconds), larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        most, seconds = self._larger.get(scope["path"], self._usual)
        body = _Body(receive, most + MULTIPART, seconds)
        send = _with_headers(send)
        try:
            self._check_sender(scope["method"], headers)
            body.check_length(headers.get("content-length"))
        except RefusedError as refused:
            await body.drain()
            await send_error(send, refused)
            return
        began = False

        async def forward(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, body.receive, forward)
        except RefusedError as refused:
            if began:
                raise
            if refused.status != 408:  # then there is nothing to wait for
                await body.drain()
            await send_error(send, refused)

    def _check_sender(self, method: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        named = host_and_port(hosts[0]) if len(hosts) == 1 else None
        if named is None or not (named[0] in self._hosts or (self._any_address and is_address(named[0]))):
            called = ", ".join(hosts)[:100]
            raise RefusedError(403, f"this service is not called {called!r}: use the address it was started with")
        if method in ("GET", "HEAD"):
            return
        origins, fetched = headers.getlist("origin"), headers.getlist("sec-fetch-site")
        foreign = not {"cross-site", "same-site"}.isdisjoint(fetched) or len(origins) > 1
        if foreign or not all(same_origin(origin, hosts[0]) for origin in origins):
            raise RefusedError(403, "a page of another site may not use this service: use its own page, or a program")


class _Body:
    """A request's body as it comes, no longer than its bounds of bytes and seconds."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._seen, self._ended = receive, most, 0, False
        self._seconds, self._until = seconds, anyio.current_time() + seconds

    def check_length(self, declared: str | None) -> None:
        if declared is not None and not (declared.isdecimal() and len(declared) < 20 and int(declared) <= self._most):
            raise self._refusal()

    async def receive(self) -> Message:
        message = await self._next()
        if self._seen > self._most:
            raise self._refusal()
        return message

    async def drain(self) -> None:
        """Read on to the body's end, within bounds: who is still sending cannot read why it was refused."""
        self._until = min(self._until, anyio.current_time() + DRAIN_SECONDS)
        with contextlib.suppress(RefusedError):
            while not self._ended and self._seen <= DRAIN * self._most:
                await self._next()

    async def _next(self) -> Message:
        # After its end there is nothing but the client's leaving to wait for, which takes as long as it takes.
        with anyio.CancelScope(deadline=math.inf if self._ended else self._until) as scope:
            message = await self._receive()
        if scope.cancelled_caught:
            raise RefusedError(408, f"the request did not arrive within {self._seconds:g} s: send a smaller image, or try again")
        self._seen += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _refusal(self) -> RefusedError:
        return RefusedError(413, f"too many bytes: expected {self._most - MULTIPART:,} at most; send a smaller file")


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers.update(HEADERS)
        await send(message)

    return with_headers


async def send_error(send: Send, refused: RefusedError) -> None:
    """Answer with a refusal as JSON, `{"error": ...}`."""
    content = error_body(refused.message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused.status == 503:
        headers.append((b"retry-after", b"2"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def error_body(message: Any) -> bytes:
    """The JSON of an error."""
    return json.dumps({"error": str(message)}, ensure_ascii=False).encode()


# ---------------------------------------------------------------------- the names in a request

# `Host` and `Origin` are read as RFC 3986 and RFC 6454 write them and in no other way. Lenient readers find a known name in
# `evil@127.0.0.1` or `localhost#x`. What is not exactly a host with or without a port is no name here.
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


def host_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names or addresses as `host_and_port` has them, so that a port that was given with one does not matter.

    Raises:
        InputError: one is none.
    """
    found = list[str]()
    for name in names:
        named = (name.lower(), None) if is_address(name) else host_and_port(name)
        if named is None:
            raise InputError(
                f"the name {name[:100]!r}: expected that of a host, such as demo.example.org, without http:// or a path"
            )
        found.append(named[0])
    return tuple(found)


def is_host(name: str) -> bool:
    """Whether a request can be for it: an IP address, or what `host_and_port` reads."""
    return is_address(name) or host_and_port(name) is not None


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
