"""Connections of uvicorn, bounded in number and time: nobody keeps others out, or memory busy, by doing nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import select
from itertools import chain
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dalle.apps.server.errors import ApiError
from dalle.apps.server.guard import SLOWEST
from dalle.apps.server.settings import ServeConfig

log = logging.getLogger("dalle.server")


def bounded_protocol(settings: ServeConfig) -> type[asyncio.Protocol]:
    """HTTP over a bounded number of connections, each of which must send a request in time.

    Where there are too many, the new one takes the place of the one that has waited longest without a request: else
    somebody who opens connections and sends nothing would keep everybody else out.
    """
    silent: dict[H11Protocol, None] = {}  # without a request so far, the longest first
    resting: dict[H11Protocol, None] = {}  # kept open between two requests, likewise

    class BoundedProtocol(H11Protocol):
        resumed = 0  # times that the client has read what was too much to be sent at once

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                given_up = next(filter(_idle, chain(silent, resting)), self)
                forget(given_up)
                given_up.transport.abort()
                if given_up is self:
                    return
            silent[self] = None
            self.loop.call_later(settings.header_timeout, self._silent, None)
            self.loop.call_later(settings.send_timeout, self._check_read, 0, 0)

        def data_received(self, data: bytes) -> None:
            idle, last = self.timeout_keep_alive_task is not None, self.cycle
            super().data_received(data)
            cycle = cast("RequestResponseCycle | None", self.cycle)  # None until there is a request
            if cycle is not None and not cycle.response_complete:
                silent.pop(self, None)
                resting.pop(self, None)
            if idle:  # the first bytes of another request
                self.loop.call_later(settings.header_timeout, self._silent, last)

        def send_400_response(self, msg: str) -> None:
            """Refuse what is no HTTP in the shape of all errors, and log it as they are."""
            client = None if self.client is None else self.client[0]
            log.info("%s", json.dumps({"event": "request", "status": 400, "client": client, "why": "no HTTP"}))
            answer = ApiError("the request is no HTTP/1.1: its first line or a header is wrong, or too long").response()
            head = h11.Response(
                status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")], reason=b"Bad Request"
            )
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete and not self.transport.is_closing():  # no other request came with it
                resting[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            forget(self)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.resumed += 1

        def _check_read(self, before: int, resumed: int) -> None:
            """End a connection whose client does not read what is left for it, which would stay in memory for ever."""
            if self not in self.connections:
                return
            left = self.transport.get_write_buffer_size()
            cycle = cast("RequestResponseCycle | None", self.cycle)
            idle = cycle is None or cycle.response_complete or self.transport.is_closing()
            added = not (idle or (self.flow.write_paused and resumed == self.resumed))  # perhaps, since the last look
            if before and not added and left > before - SLOWEST * settings.send_timeout:
                self.transport.abort()
            else:
                self.loop.call_later(settings.send_timeout, self._check_read, left, self.resumed)

        def _silent(self, last: object) -> None:
            """Nothing has come that is a request since the `last`: not a word, or a head that is sent slowly."""
            if self.cycle is last and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.transport.close()

    def forget(one: H11Protocol) -> None:
        one.connections.discard(one)
        silent.pop(one, None)
        resting.pop(one, None)

    return cast("type[asyncio.Protocol]", BoundedProtocol)


def _idle(one: H11Protocol) -> bool:
    """Whether nothing is under way, in either direction, that has not been read or sent yet.

    Of many connections made at once, one may have sent its request before anybody looked.
    """
    coming = select.poll()
    coming.register(one.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not coming.poll(0) and not one.transport.get_write_buffer_size()
