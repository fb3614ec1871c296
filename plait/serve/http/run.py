"""The server as a process: uvicorn, its limits, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from types import FrameType

import uvicorn

from plait.serve.http.app import app_of
from plait.serve.http.logs import logger
from plait.serve.http.server import Server
from plait.serve.http.settings import ServerSettings
from plait.serve.http.slow_clients import protocol
from plait.serve.service import Service


async def serve(service: Service, settings: ServerSettings) -> None:
    """Serves until SIGTERM or SIGINT, then lets answers end (at most `settings.drain_s`) and returns.

    A second signal ends it at once. Must run in the main thread, which is where signals arrive.
    """
    server = Server(service, settings)
    await DrainingServer(uvicorn_config(server), server).serve()


def uvicorn_config(server: Server) -> uvicorn.Config:
    settings = server.settings
    return uvicorn.Config(
        app_of(server),
        host=settings.host,
        port=settings.port,
        http=protocol(settings.header_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.max_connections,
        backlog=2048,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


class DrainingServer(uvicorn.Server):
    """On the first signal new requests get a 503 and those under way go on; the process leaves when they are done."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.plait = server
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is here stays: no collection needs to look through it while somebody waits
        gc.set_threshold(10_000, 20, 20)  # requests make hundreds of objects each, and hardly ever a cycle
        if not self.should_exit:
            if self.plait.jobs is not None:
                self.plait.jobs.resume()
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            page = f"http://{host}:{port}/"
            logger.info("serving", extra={"url": f"{page}v1", "page": page, "models": self.plait.model_names})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not noted as captured: uvicorn would raise the signal again at the end, and the exit code be a failure's."""
        if self.plait.admission.is_draining:
            self.should_exit = self.force_exit = True
            return
        self.plait.admission.is_draining = True
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def _start_draining(self, signal_name: str) -> None:
        self._draining = asyncio.create_task(self._drain(signal_name))

    async def _drain(self, signal_name: str) -> None:
        admission = self.plait.admission
        if self.plait.jobs is not None:
            await self.plait.jobs.stop()
        left = {"running": admission.running, "waiting": admission.waiting}
        logger.info("draining", extra={"signal": signal_name, **left})
        if not await admission.drained(self.plait.settings.drain_s):
            logger.warning("answers cut off", extra={"running": admission.running, "waiting": admission.waiting})
            self.force_exit = True
        self.should_exit = True
