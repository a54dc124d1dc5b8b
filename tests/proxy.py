"""A TCP proxy that does to connections what a bad network does."""

import contextlib
import socket
import struct
import sys
import threading
import time


class Proxy:
    """Passes connections to one port of this machine on to another one, until close().

    `delay` is how many seconds each piece of data waits, `replies` whether what the target answers is passed on, and
    `cuts` how many pieces a client may send on each of the next connections, before that is closed.
    """

    def __init__(self, port: int, target: int) -> None:
        self.delay = 0.0
        self.replies = True
        self.cuts: list[int] = []
        self._target = target
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # close()
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._connections += [client, server]
            most = self.cuts.pop(0) if self.cuts else sys.maxsize
            for source, sink, is_reply, pieces in ((client, server, False, most), (server, client, True, sys.maxsize)):
                threading.Thread(target=self._pass_on, args=(source, sink, is_reply, pieces), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_reply: bool, pieces: int) -> None:
        with contextlib.suppress(OSError):  # the other direction has closed both, or reset() has
            while pieces and (data := source.recv(65_536)):
                pieces -= 1
                time.sleep(self.delay)
                if self.replies or not is_reply:
                    sink.sendall(data)
        self._end(source)
        self._end(sink)

    @staticmethod
    def _end(connection: socket.socket) -> None:
        """Close so that the other end sees a reset, and a thread that waits for data here goes on."""
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RD)
        connection.close()

    def reset(self) -> None:
        """Reset every connection."""
        while self._connections:
            self._end(self._connections.pop())

    def close(self) -> None:
        """Take no more connections, and reset those that there are."""
        with contextlib.suppress(OSError):  # only some systems know this for a listener; there it ends accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
