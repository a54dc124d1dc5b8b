"""A handler that hands orders to a kitchen, and the kitchen: an HTTP server that cooks what is on its menu.

    python -m next_steps.retries.kitchen                      has burgers
    python -m next_steps.retries.kitchen --menu burger,soup

Where it is closed or slow, an order may succeed later; what is not on the menu never will.
"""

import argparse
import http.client
import json
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import tracker
from next_steps.retries import NotRetriableError
from producer import Order

PORT = 8642
LIMIT = 10  # seconds for the kitchen to answer


def cook(order: Order) -> None:
    """Have the order cooked and show it; NotRetriableError where it is not on the menu, OSError where nobody cooks."""
    request = urllib.request.Request(f"http://localhost:{PORT}/orders", json.dumps(order).encode())
    try:
        urllib.request.urlopen(request, timeout=LIMIT).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == http.client.UNPROCESSABLE_ENTITY:
            raise NotRetriableError(error.reason) from None
        raise
    print(tracker.line_for(order))


def main() -> None:
    """Cook until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--menu", default="burger", help="what it cooks (burger)")
    menu = parser.parse_args().menu.split(",")

    class Kitchen(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            on_menu = order["item"] in menu
            self.send_response(200 if on_menu else 422, "Cooked" if on_menu else "Not on the menu")
            self.end_headers()

    try:
        with ThreadingHTTPServer(("localhost", PORT), Kitchen) as kitchen:
            print(f"The kitchen is open and cooks {', '.join(menu)}", flush=True)
            kitchen.serve_forever()
    except OSError as error:
        parser.exit(1, f"Port {PORT} could not be used: {error}. Close the other kitchen\n")
    except KeyboardInterrupt:
        parser.exit()


if __name__ == "__main__":
    main()
