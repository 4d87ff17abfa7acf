"""The relay itself: two threads a direction, one that takes bytes in and one that lets them out."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from dataclasses import dataclass

from edge_client.relay.shape import PACKET, Direction, Shape

_WHOLE = 64 * 1024
_KERNEL_BUFFER = (
    64 * 1024
)  # so that bytes wait in our buffer, which has the size that was asked for


@dataclass(slots=True)
class Carried:
    """Counts what went through, in bytes."""

    up: int = 0
    down: int = 0
    connections: int = 0


class Relay:
    """Listens, connects every client to `target`, and shapes both directions."""

    def __init__(
        self,
        listen: tuple[str, int],
        target: tuple[str, int],
        up: Shape,
        down: Shape,
        seed: int = 0,
    ) -> None:
        """Binds; raises OSError when it cannot."""
        self._target = target
        self._shapes = (up, down)
        self._seed = seed
        self.carried = Carried()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(listen, backlog=64)
        self.address: tuple[str, int] = self._server.getsockname()[:2]

    def start(self) -> None:
        """Serves from a thread of its own."""
        threading.Thread(target=self.serve, name="link", daemon=True).start()

    def serve(self) -> None:
        """Accepts connections until closed."""
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stops listening and cuts every connection."""
        self._server.close()
        for one in list(self._open):
            _cut(one)

    def _connect(self, client: socket.socket) -> None:
        try:
            cloud = socket.create_connection(self._target)
        except OSError:
            client.close()  # as a link to nowhere would: refused
            return
        with self._lock:
            self.carried.connections += 1
            number = self.carried.connections
        for one in (client, cloud):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER)
            self._open.add(one)
        both = [
            threading.Thread(target=self._carry, args=(name, source, sink, direction), daemon=True)
            for name, source, sink, direction in (
                ("up", client, cloud, Direction(self._shapes[0], self._seed + 2 * number)),
                ("down", cloud, client, Direction(self._shapes[1], self._seed + 2 * number + 1)),
            )
        ]
        for one_way in both:
            one_way.start()
        for one_way in both:
            one_way.join()
        for one in (client, cloud):
            one.close()
            self._open.discard(one)

    def _carry(
        self, name: str, source: socket.socket, sink: socket.socket, direction: Direction
    ) -> None:
        """Takes bytes in as the buffer has room, until the source ends or the sink does."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        out = threading.Thread(target=_let_out, args=(source, sink, waiting), daemon=True)
        out.start()
        shaped = direction.shape.rate is not None or direction.shape.trace
        size = PACKET if shaped else _WHOLE
        data = b"any"
        while data:
            _sleep_until(direction.room_at(time.monotonic()))
            try:
                data = source.recv(size)
            except OSError:
                data = b""
            waiting.put((direction.enter(time.monotonic(), len(data)), data))
            with self._lock:
                setattr(self.carried, name, getattr(self.carried, name) + len(data))
        out.join()


def _let_out(
    source: socket.socket, sink: socket.socket, waiting: queue.SimpleQueue[tuple[float, bytes]]
) -> None:
    """Writes each piece when its time has come; an empty one ends the direction."""
    while True:
        due, data = waiting.get()
        _sleep_until(due)
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:  # whoever read is gone, so nobody need write
            _cut(source)
            _cut(sink)
            return


def _sleep_until(due: float) -> None:
    left = due - time.monotonic()
    if left > 0:
        time.sleep(left)


def _cut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
