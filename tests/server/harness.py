"""A real server on a free port, around a real engine, with the clients to talk to it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from openai import OpenAI

from headstart import AsyncEngine
from headstart.engine.stats import EngineStats
from headstart.server.app import create_app
from headstart.server.run import DrainingServer, bind
from headstart.server.service import Service


@dataclass
class Running:
    """A server that runs in a thread, its engine, and clients of it."""

    url: str
    engine: AsyncEngine
    openai: OpenAI
    http: httpx.Client
    service: Service

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def wait_until_idle(self, seconds: float = 20.0) -> EngineStats:
        """The engine's counters once nothing runs or waits; every page is then free or cached."""
        deadline = time.monotonic() + seconds
        while (stats := self.engine.stats()).num_running or stats.num_waiting:
            assert time.monotonic() < deadline, f"still running: {stats}"
            time.sleep(0.005)
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        return stats


@contextmanager
def running(engine: AsyncEngine, **options: Any) -> Iterator[Running]:
    """Serve `engine` with `create_app`'s options until the block ends."""
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = create_app(engine, **options)
    server = DrainingServer(uvicorn.Config(app, log_level="warning"), app.state.service.lifecycle, 5.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    key = (options.get("api_keys") or ["none"])[0]
    headers = {"Authorization": f"Bearer {key}".encode()}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            openai = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            yield Running(url, engine, openai, http, app.state.service)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
    assert not thread.is_alive()
