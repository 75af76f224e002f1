"""uvicorn within limits: connections that stall, and a graceful shutdown.

uvicorn bounds how long an idle connection is kept, and nothing else. Here each stage has its time. From its beginning, or the
answer before, until the head of a request is whole: `HEAD_SECONDS`. The body: `security` bounds it. An answer that its client
does not take: `Limits.upload_seconds`. Beyond `Limits.connections`, and from one address `Limits.address_connections`, the
connection that has been idle the longest makes room; where all are busy the new one is refused.

At the shutdown active requests finish within a grace time, and new ones get 503.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from img2img.web.limits import Limits
from img2img.web.security import error_body
from img2img.web.service import CANCEL_SECONDS, Service

HEAD_SECONDS = 15.0
KEEP_ALIVE = 5
"""Seconds of `HEAD_SECONDS` for which uvicorn keeps a connection without a new request."""

POLL_SECONDS = 0.5

SHUTDOWN_SECONDS = CANCEL_SECONDS + 1.5
"""Seconds that the shutdown itself may take."""


def uvicorn_server(app: Any) -> uvicorn.Server:
    """A server for an application of `server.build_app`, within its limits."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app, http=connection_class(service.limits), ws="none", log_config=None, log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1,
    )  # fmt: skip
    return _Server(config, service)


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol of HTTP/1.1 within limits, for its option `http`."""
    return type("BoundedConnection", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    """A client's connection, looked at twice a second."""

    limits: Limits
    head_seconds = HEAD_SECONDS

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self._idle_since = self._sent_at = self.loop.time()
        self._timer = self.loop.call_later(POLL_SECONDS, self._look)
        if not self._has_room():
            self._refuse(503, "too many connections: try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, or for the rest of a request's head."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def unsent(self) -> bool:
        """Whether bytes of an answer wait for the client to take them."""
        return self.transport.get_write_buffer_size() > 0

    def _look(self) -> None:
        now = self.loop.time()
        if not self.unsent:
            self._sent_at = now
        if self.unsent or not self.idle:
            self._idle_since = now
        if now - self._sent_at > self.limits.upload_seconds:
            self.transport.abort()
        elif now - self._idle_since > self.head_seconds and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                self._refuse(408, f"the request's head did not arrive within {self.head_seconds:g} s: try again")
            else:
                self.transport.close()
        self._timer = self.loop.call_later(POLL_SECONDS, self._look)

    def _has_room(self) -> bool:
        others = [c for c in self.connections if c is not self and isinstance(c, Connection) and not c.transport.is_closing()]
        alike = [] if self._address is None else [c for c in others if c._address == self._address]
        for group, most in ((alike, self.limits.address_connections), (others, self.limits.connections)):
            if len(group) >= most:
                idle = [c for c in group if c.idle]
                if not idle:
                    return False
                min(idle, key=lambda c: c._idle_since).transport.abort()
        return True

    @property
    def _address(self) -> str | None:
        """Whose it is; None for this machine's own, which may be a proxy that speaks for many."""
        try:
            address = ipaddress.ip_address(self.client[0] if self.client else "127.0.0.1")
        except ValueError:  # an IPv6 address with a zone
            return self.client[0] if self.client else None
        address = getattr(address, "ipv4_mapped", None) or address
        return None if address.is_loopback else str(address)

    def _refuse(self, status: int, message: str) -> None:
        content = error_body(message)
        phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        again = "retry-after: 2\r\n" if status == 503 else ""
        self.transport.write(f"{head}{again}connection: close\r\n\r\n".encode() + content)
        self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, while the socket still listens and answers; then as uvicorn does."""
        self._service.stop()
        await self._quiet(self._service.limits.grace_seconds - SHUTDOWN_SECONDS)
        self._service.end()
        await self._quiet(CANCEL_SECONDS + 0.5)
        # uvicorn would print a traceback for each request that it cuts off.
        log = logging.getLogger("uvicorn.error")
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            await super().shutdown(sockets)
        finally:
            log.setLevel(level)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nothing runs or waits and every answer is on its way; or a second Ctrl-C, or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.force_exit:
            await anyio.sleep(0.05)  # also for an answer that has been made and not sent
            if not self._service.busy and not any(c.unsent for c in self.server_state.connections if isinstance(c, Connection)):
                return
