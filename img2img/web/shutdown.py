"""Graceful shutdown: active requests finish within a grace time, new ones get 503."""

import logging
import socket
import time
from typing import Any

import anyio
import uvicorn

from img2img.web.connections import KEEP_ALIVE, Connection, connection_class
from img2img.web.service import CANCEL_SECONDS, Service

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
