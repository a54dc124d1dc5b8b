"""Who may use the page: users with a password and a role, their sessions, and a log of who did what.

    python -m next_steps.web.users add ana --role manager    asks for the password on the terminal
    python -m next_steps.web.users password ana              another one, which ends ana's sessions
    python -m next_steps.web.users role ana viewer
    python -m next_steps.web.users remove ana
    python -m next_steps.web.users list
    python -m next_steps.web.users log                       who did what, the newest last

Exit status: 0 done, 1 it can't be, 2 wrong usage.
"""

import argparse
import getpass
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError
from tabulate import tabulate

import tracker
from next_steps.history.database import address, reason
from next_steps.history.show import written
from next_steps.web.accounts import NAME, PASSWORD, ROLES, Users
from tracker import printable


def ask_for_password() -> str:
    """Return the password that is typed twice, or the line that comes through a pipe; SystemExit where it can't be."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            sys.exit("The two differ. Nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not PASSWORD[0] <= len(password) <= PASSWORD[1]:
        sys.exit(f"A password must have {PASSWORD[0]} to {PASSWORD[1]} characters. Nothing was changed")
    return password


def name_of(text: str) -> str:
    """Return the name; ArgumentTypeError where it can't be one."""
    if not text.isprintable() or not 0 < len(text.strip()) == len(text) <= NAME:
        raise argparse.ArgumentTypeError(f"a name must be 1 to {NAME} printable characters, without space around")
    return text


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_users(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("add", "password", "role", "remove"):
        commands.add_parser(command).add_argument("name", type=name_of)
    commands.choices["add"].add_argument("--role", choices=ROLES, required=True)
    commands.choices["role"].add_argument("role", choices=ROLES)
    commands.add_parser("list")
    commands.add_parser("log").add_argument("--limit", type=int, default=100, metavar="N", help="(%(default)s)")
    return parser


def add_users(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flag --users."""
    where = "where the page's users are, @FILE: a file with the URL (%(default)s)"
    parser.add_argument("--users", type=address, default="sqlite:///users.db", metavar="URL", help=where)


def run(known: Users, args: argparse.Namespace) -> None:
    """Do what the command line asks for; SystemExit says why it can't be."""
    there = known.all()
    if args.command == "list":
        tracker.show([tabulate([[printable(name), role] for name, role in there.items()], ["name", "role"])])
        return
    if args.command == "log":
        rows = [[written(row.at), *map(printable, row[2:])] for row in known.log(args.limit)]
        tracker.show([tabulate(rows, ["at", "name", "address", "action", "target"], disable_numparse=True)])
        return
    if (args.name in there) == (args.command == "add"):
        sys.exit(f"User {args.name} {'is' if args.name in there else 'is not'} there. See `list`")
    if args.command == "remove":
        known.remove(args.name)
    elif args.command == "role":
        known.put(args.name, args.role)
    else:
        known.put(args.name, getattr(args, "role", None), ask_for_password())
    tracker.show([f"User {args.name}: {args.command} done"])


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status, SystemExit says why it can't be."""
    args = command_line().parse_args(argv)
    known = Users(args.users)
    try:
        known.create()
        run(known, args)
    except SQLAlchemyError as error:
        sys.exit(f"The users in {args.users} can't be used: {reason(error)}. See that it runs, and check --users")
    return 0


if __name__ == "__main__":
    sys.exit(main())
