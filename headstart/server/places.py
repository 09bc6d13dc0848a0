"""What a request holds while it runs: its places in line, and the time that it may take."""

import asyncio
import time
from typing import TYPE_CHECKING

from headstart.engine.client import EngineClient
from headstart.engine.outputs import RequestOutput
from headstart.server.errors import ApiError
from headstart.server.limits import too_many
from headstart.server.tenants import Tenant

if TYPE_CHECKING:
    from headstart.server.service import Service


class Places:
    """What a request takes of the line, and of its key's requests at once: one for each output.

    Args:
        service: whose line.
        tenant: whose request it is.
        outputs: how many places.
    """

    def __init__(self, service: "Service", tenant: Tenant | None, outputs: int) -> None:
        self._service, self._tenant, self._outputs = service, tenant, outputs
        self._held = 0

    def take(self) -> None:
        """Take all of them, if there are so many.

        Raises:
            ApiError: there are not.
        """
        most = None if self._tenant is None else self._tenant.limits.max_concurrent_requests
        # The request itself counts already. More outputs than the key has may run where nothing else does.
        others = 0 if self._tenant is None else self._tenant.active - 1
        if most is not None and others > 0 and others + self._outputs > most:
            self._service.metrics.refused("concurrency_limit_exceeded")
            message = f"{others} outputs for this key are being written, and with this request it would be over {most}"
            raise too_many(message, "concurrency_limit_exceeded", 1)
        self._service.check_queue(self._outputs)
        self._service.open_outputs += self._outputs
        self._held = self._outputs
        if self._tenant is not None:
            self._tenant.active += self._outputs - 1

    def give_back(self, outputs: int | None = None) -> None:
        """So many have ended, or all that are left."""
        ended = self._held if outputs is None else min(outputs, self._held)
        before, self._held = self._held, self._held - ended
        self._service.open_outputs -= ended
        if self._tenant is not None:
            # The last one is the request's own.
            self._tenant.active -= max(before - 1, 0) - max(self._held - 1, 0)


class Alarm:
    """Ends a request in the engine when its time is over.

    Args:
        engine: runs the request.
        request_id: its name there.
        until: when it must end, by `time.monotonic()`; None never ends it.
    """

    def __init__(self, engine: EngineClient, request_id: str, until: float | None) -> None:
        self._engine, self._request_id = engine, request_id
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if until is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._task = asyncio.ensure_future(self._engine.abort(self._request_id))

    def check(self, output: RequestOutput) -> None:
        """Raise 504 if this output is the last because the time was over."""
        if self._task is not None and any(choice.finish_reason == "abort" for choice in output.outputs):
            message = "the request took longer than this key may take; ask for fewer tokens"
            raise ApiError(504, message, kind="timeout_error", code="request_timeout")

    def cancel(self) -> None:
        """The request has ended."""
        if self._timer is not None:
            self._timer.cancel()
