"""Make what the broker and its users prove with who they are: certificates, passwords, and a properties file for each.

    python -m next_steps.security.make_credentials                       once, into next_steps/security/secrets
    python -m next_steps.security.make_credentials --renew               new certificates under the same CA
    python -m next_steps.security.make_credentials --new-password web    a new password for a user

Exit status: 0 they are made, 1 they can't be, 2 wrong usage.
"""

import argparse
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from next_steps.security.certificates import expiry, in_pem, make_ca, make_certificate, read_ca
from next_steps.security.rights import USERS

SECRETS = Path(__file__).parent / "secrets"
HOSTS = ["localhost", "127.0.0.1", "kafka"]  # by which clients may call the broker
# Modes of files. The container has a user of its own: the broker's are shared, in a folder that no other can enter.
PRIVATE, SHARED = 0o600, 0o644

CLIENT = """\
# Whoever can read this is {user} to Kafka.
bootstrap.servers=localhost:9092
security.protocol=sasl_ssl
sasl.mechanism=SCRAM-SHA-512
sasl.username={user}
sasl.password=
ssl.ca.location={ca}
"""
APPLY = """\
# The way in of next_steps.security.apply, by certificate. Whoever can read this may do all.
bootstrap.servers=localhost:19092
security.protocol=ssl
ssl.ca.location={ca}
ssl.certificate.location={certificate}
ssl.key.location={certificate}
"""
HEALTH = """\
# For the health check in the container.
security.protocol=SSL
ssl.keystore.type=PEM
ssl.keystore.location=/etc/kafka/secrets/kafka.pem
ssl.truststore.type=PEM
ssl.truststore.location=/etc/kafka/secrets/ca.pem
"""


def write(file: Path, content: bytes | str, mode: int = PRIVATE) -> None:
    """Put the content into the file, whole or not at all, and never readable for more than `mode` says."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    # Not os.umask's to decide: the broker's files have to be readable in the container.
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
    part.chmod(mode)
    os.replace(part, file)


def make_all(folder: Path) -> None:
    """Fill the folder: a CA, its certificates, and a password for each user."""
    for each, mode in ((folder, 0o700), (folder / "ca", 0o700), (folder / "broker", 0o755)):
        each.mkdir(exist_ok=True, parents=True)
        each.chmod(mode)
    ca = make_ca()
    write(folder / "ca" / "ca.key", in_pem(ca.key))
    for file in (folder / "ca.pem", folder / "broker" / "ca.pem"):
        write(file, in_pem(ca.certificate), SHARED)
    write(folder / "broker" / "health.properties", HEALTH, SHARED)
    places = {"ca": (folder / "ca.pem").resolve(), "certificate": (folder / "apply.pem").resolve()}
    write(folder / "apply.properties", APPLY.format(**places))
    for user in USERS:
        write(folder / f"{user}.properties", CLIENT.format(user=user, **places))
        new_password(folder, user)
    renew(folder)


def renew(folder: Path) -> None:
    """Make new certificates under the CA that the folder has."""
    ca = read_ca(folder)
    write(folder / "broker" / "kafka.pem", make_certificate(ca, "broker", HOSTS), SHARED)
    write(folder / "apply.pem", make_certificate(ca, "admin"))


def new_password(folder: Path, user: str) -> None:
    """Put a new password into the properties file of a user, whose other lines stay."""
    file = folder / f"{user}.properties"
    line = f"sasl.password={secrets.token_urlsafe(24)}"
    write(file, re.sub("^sasl.password=.*$", line, file.read_text("utf-8"), flags=re.MULTILINE))


def expire(folder: Path) -> str:
    """Return when the certificates in the folder expire, in a sentence."""
    ends = [f"{expiry(folder / file):%Y-%m-%d}" for file in ("broker/kafka.pem", "ca.pem")]
    return f"The certificates expire on {ends[0]}, the CA on {ends[1]}"


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=SECRETS, help="where they are (next_steps/security/secrets)")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--renew", action="store_true", help="make new certificates under the same CA")
    one.add_argument("--new-password", choices=USERS, metavar="USER", help=", ".join(USERS))
    one.add_argument("--force", action="store_true", help="make all anew: what was made before is worth nothing then")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make what the command line asks for; return the exit status, SystemExit says what is wrong."""
    args = command_line().parse_args(argv)
    folder: Path = args.directory
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # as it is typed
    try:
        there = folder.exists() and any(folder.iterdir())  # though the CA's key may be kept elsewhere
        if there and not (args.force or args.renew or args.new_password):
            sys.exit(
                f"{folder} holds something. --renew renews its certificates, --force makes all anew. {expire(folder)}"
            )
        if not there and (args.renew or args.new_password):
            sys.exit(f"{folder} holds no credentials. Make them first, without --renew or --new-password")
        if args.renew:
            renew(folder)
        elif args.new_password:
            new_password(folder, args.new_password)
        else:
            make_all(folder)
        print(f"{folder} holds the credentials. {expire(folder)}")
    except (OSError, ValueError) as error:
        sys.exit(f"{folder} could not be filled: {error}. Mend that, or give another place by --directory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
