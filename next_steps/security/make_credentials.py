"""Make what the broker and its users prove with who they are: certificates, passwords, and a properties file for each.

    python -m next_steps.security.make_credentials                       once, into next_steps/security/secrets
    python -m next_steps.security.make_credentials --renew               new certificates under the same CA
    python -m next_steps.security.make_credentials --new-password web    a new password for a user

Exit status: 0 they are made, 1 they can't be, 2 wrong usage.
"""

import argparse
import contextlib
import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from next_steps.security.rights import USERS

SECRETS = Path(__file__).parent / "secrets"
HOSTS = ["localhost", "127.0.0.1", "kafka"]  # by which clients may call the broker
CA_DAYS, DAYS = 3650, 397  # for which the CA's certificate is good, and those that it signs
AHEAD = timedelta(minutes=5)  # clocks differ
# By name, and who may read it besides its owner. The broker's are read by the container's own user, behind a folder
# that is closed to all others.
PRIVATE, SHARED = 0o600, 0o644

Key = ec.EllipticCurvePrivateKey

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


def make_ca() -> tuple[Key, x509.Certificate]:
    """Return the key and the certificate of a new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders CA")])
    builder = certificate(name, name, key, CA_DAYS)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def make_certificate(
    ca: tuple[Key, x509.Certificate], name: str, hosts: Sequence[str] = (), days: float = DAYS
) -> bytes:
    """Return a key, its certificate and the CA's, in PEM, for what is called `name` and has these addresses."""
    ca_key, ca_certificate = ca
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *[ExtendedKeyUsageOID.SERVER_AUTH] * bool(hosts)]
    builder = certificate(subject, ca_certificate.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([*map(general_name, hosts)]), critical=False)
    return in_pem(key) + in_pem(builder.sign(ca_key, hashes.SHA256())) + in_pem(ca_certificate)


def certificate(subject: x509.Name, issuer: x509.Name, key: Key, days: float) -> x509.CertificateBuilder:
    """Return what all certificates have."""
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + timedelta(days=days)) - AHEAD)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def general_name(host: str) -> x509.GeneralName:
    """Return a host's name or address, as a certificate holds it."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def in_pem(what: Key | x509.Certificate) -> bytes:
    """Return a key or a certificate as text."""
    if isinstance(what, x509.Certificate):
        return what.public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    return what.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


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
    key, ca = make_ca()
    write(folder / "ca" / "ca.key", in_pem(key))
    write(folder / "ca.pem", in_pem(ca), SHARED)
    write(folder / "broker" / "ca.pem", in_pem(ca), SHARED)
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


def read_ca(folder: Path) -> tuple[Key, x509.Certificate]:
    """Return the key and the certificate of the folder's CA."""
    key = serialization.load_pem_private_key((folder / "ca" / "ca.key").read_bytes(), None)
    return cast(Key, key), x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())


def new_password(folder: Path, user: str) -> None:
    """Put a new password into the properties file of a user, whose other lines stay."""
    file = folder / f"{user}.properties"
    line = f"sasl.password={secrets.token_urlsafe(24)}"
    write(file, re.sub("^sasl.password=.*$", line, file.read_text("utf-8"), flags=re.MULTILINE))


def expiry(file: Path) -> datetime:
    """Return until when the first certificate in the file is good."""
    return x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc


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
    there = (folder / "ca" / "ca.key").exists()
    try:
        if there and not (args.force or args.renew or args.new_password):
            sys.exit(f"{folder} holds credentials. --renew renews the certificates, --force makes all anew")
        if not there and (args.renew or args.new_password):
            sys.exit(f"{folder} holds no credentials. Make them first, without --renew or --new-password")
        if args.renew:
            renew(folder)
        elif args.new_password:
            new_password(folder, args.new_password)
        else:
            make_all(folder)
        ends = [f"{expiry(folder / file):%Y-%m-%d}" for file in ("broker/kafka.pem", "ca.pem")]
    except (OSError, ValueError) as error:
        sys.exit(f"{folder} could not be filled: {error}. Mend that, or give another place by --directory")
    print(f"{folder} holds the credentials. The certificates expire on {ends[0]}, the CA on {ends[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
