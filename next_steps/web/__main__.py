"""Serve a web page for orders at http://127.0.0.1:8000, until Ctrl-C.

    python -m next_steps.web                        with the store of next_steps.history in it, into the file orders.db
    python -m next_steps.web --database @FILE       reads the database whose URL the file holds, which a store fills

It reads the database and writes to Kafka only. Once next_steps.web.users has a user, it wants a login.
Exit status: 0 stopped, 1 it can't serve or Kafka has refused it, 2 wrong usage.
"""

import argparse
import asyncio
import gc
import ipaddress
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from confluent_kafka import KafkaException

import tracker
from next_steps.history import store
from next_steps.history.database import add_database, address
from next_steps.web.accounts import Users
from next_steps.web.app import create_app
from next_steps.web.kafka import Broker, Sender, StoreThread
from next_steps.web.users import add_users

STOPS = 3.5  # seconds after a signal, until what still waits for Kafka is left alone
FLUSH = 2.0  # seconds of these for Kafka to confirm what is under way


class Server(uvicorn.Server):
    """A server that ends its live pages, and answers orders under way, when a signal comes or Kafka refuses it."""

    stopped_at = 0.0
    on_stop: Any = None
    refused: Any = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal changes nothing."""
        if not self.should_exit:
            self.should_exit, self.stopped_at = True, time.monotonic()
            asyncio.get_event_loop().call_soon_threadsafe(self.on_stop)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end, ten times a second."""
        if self.refused():
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)


def serve(args: argparse.Namespace, sender: Sender, listener: socket.socket) -> bool:
    """Serve until a signal comes, or Kafka refuses the credentials; return whether it did."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if args.certificate else "http"
    tracker.show([f"Serving {scheme}://{f'[{host}]' if ':' in host else host}:{port}"])
    storing = StoreThread(args, store.run) if args.stores else None
    broker = Broker(args.config, {args.topic, args.status_topic}, storing.reconnect if storing else lambda: None)
    app = create_app(args, sender, broker)
    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            log_level="error",  # what clients do wrong is not for the log
            server_header=False,
            http="httptools",
            timeout_graceful_shutdown=4,
            timeout_keep_alive=75,  # longer than clients (5 s) and proxies (60 s) send on a quiet connection
            limit_concurrency=2_000,
            ssl_certfile=args.certificate,
            ssl_keyfile=args.key,
        )
    )

    def on_stop() -> None:
        if storing:
            storing.stop()
        broker.stop()
        app.state.live.stop()
        app.state.letters.stop()
        asyncio.get_running_loop().run_in_executor(None, partial(sender.stop, FLUSH))

    server.on_stop = on_stop
    server.refused = lambda: sender.refused or (storing is not None and storing.refused)
    gc.freeze()  # what is there from the start stays; to look through it for garbage would halt all for 50 ms each time
    server.run(sockets=[listener])
    deadline = server.stopped_at + STOPS
    broker.join(max(0, deadline - time.monotonic()))
    if storing:
        storing.join(max(0, deadline - time.monotonic()))
    return bool(server.refused())


def listen(host: str, port: int) -> socket.socket:
    """Return a socket of one of this machine's addresses; OSError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Made as TCP by name: asyncio sends answers at once by such sockets only, and by others up to 40 ms later.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # elsewhere it would take a port from another program
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener


def check(args: argparse.Namespace) -> None:
    """Return where the page may be served as the command line says; SystemExit, ValueError or OSError says why not."""
    if (args.certificate is None) != (args.key is None):
        raise ValueError("--certificate and --key need each other")
    if args.certificate:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(args.certificate, args.key)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"--certificate and --key can't be used: {error}") from None
    if ipaddress.ip_address(args.host).is_loopback:
        return
    if not args.certificate:
        sys.exit(f"At {args.host} it is served by TLS only, or passwords could be read. Give --certificate and --key")
    if not Users(args.users).any():
        sys.exit(f"At {args.host} it is served to users only. Add one: next_steps.web.users add NAME --role manager")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line: of tracker.py's, what is about Kafka."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("--port", type=int, default=8000, metavar="N", help="where it serves, 0: any that is free (%(default)s)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="by --certificate and to users: another (%(default)s)")
    add("--name", action="append", default=[], metavar="HOST", help="by which browsers call it there; may repeat")
    add("--certificate", metavar="FILE", help="serve by TLS with this certificate and those above it, in PEM")
    add("--key", metavar="FILE", help="its key, in PEM")
    add_users(parser)
    add_database(parser)
    add("--max-rate", type=int, default=50, metavar="N", help="changes a second from one address (%(default)s)")
    add("-b", "--bootstrap-servers", dest="flags", type="bootstrap.servers={}".format, metavar="HOST:PORT", **many)
    add("-t", "--topic", default="orders", help="(%(default)s)")
    add("--status-topic", default="order-status", metavar="TOPIC", help="where changes go (%(default)s)")
    add("--dead-letters", default="orders.DLQ", metavar="TOPIC", help="the topic of dead letters (%(default)s)")
    add("-g", "--group", dest="flags", type="group.id={}".format, metavar="ID", help=f"({store.GROUP})", **many)
    add("-X", dest="properties", metavar="PROP=VALUE", help="any librdkafka property", **many)
    add("-F", dest="file", metavar="FILE", help="a file of such properties: the place for passwords")
    # What the store has besides.
    parser.set_defaults(database=None, count=None, exit=False, rebuild=False, skip_missing=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the command line says; return the exit status, SystemExit says what is wrong."""
    tracker.CONFIG["group.id"] = store.GROUP
    parser = command_line()
    args = parser.parse_args(argv)
    args.stores, args.database = args.database is None, args.database or address("sqlite:///orders.db")
    try:
        args.config = tracker.read_config(args)
        sender = Sender(args.config)
        check(args)
        listener = listen(args.host, args.port)
    except KafkaException as error:
        parser.error(f"{error.args[0].str().rstrip('.')}. Check -X and -F")
    except OverflowError:
        parser.error("--port must be from 0 to 65535")
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    except OSError as error:
        if error.filename:
            parser.error(str(error))
        sys.exit(f"Port {args.port} can't be used: {error}. Choose another one by --port")
    return 1 if serve(args, sender, listener) else 0


if __name__ == "__main__":
    sys.exit(main())
