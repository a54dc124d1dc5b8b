"""The handler of orders: found by its name, with its failures told in a line, and with what it prints."""

import argparse
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

import tracker
from producer import Order
from tracker import printable

ROOT = Path(__file__).resolve().parents[2]

Handler = Callable[[Order], object]


def handler(name: str) -> Handler:
    """Return the function that MODULE:FUNCTION names; ArgumentTypeError says why it is none."""
    module, _, function = name.partition(":")
    problem = None
    try:
        found = None if module.endswith(".py") else pkgutil.resolve_name(name)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"no handler {name}: {describe(error)}{own_line(error, module)}") from None
    if module.endswith(".py"):
        problem = f"a file, whose module is {'.'.join(Path(module).with_suffix('').parts)}:{function or 'FUNCTION'}"
    elif inspect.ismodule(found):
        problem = f"a module; name its function too, {module}:FUNCTION"
    elif not callable(found):
        problem = "no function"
    elif inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        problem = "no plain function: it would return before anything was done"
    if problem:
        raise argparse.ArgumentTypeError(f"{name} is {problem}")
    return cast(Handler, found)


def describe(error: Exception) -> str:
    """Return the error in one line that can't drive a terminal."""
    return printable(": ".join(text for text in (type(error).__name__, str(error)[:1000]) if text))


def own_line(error: Exception, module: str) -> str:
    """Return where one's own code was when the error came, as " (mine.py:7)", or nothing."""
    where = ""
    for frame, number in traceback.walk_tb(error.__traceback__ and error.__traceback__.tb_next):
        file = Path(frame.f_code.co_filename)
        ours = ROOT in file.parents and "site-packages" not in file.parts
        if ours or frame.f_globals.get("__name__") == module:
            where = f" ({file.name}:{number})"
    return where


class Output:
    """Standard output where the tracker ends if it is gone: an OSError of print would count as the handler's."""

    def __init__(self, stdout: TextIO) -> None:
        self.stdout = stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stdout, name)

    def write(self, text: str) -> int:
        try:
            return self.stdout.write(text)
        except OSError:
            sys.stdout = self.stdout
            tracker.show([text])  # SystemExit
            return len(text)
