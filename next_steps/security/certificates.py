"""A certificate authority of our own, and the certificates that it signs: X.509 with keys on the curve P-256."""

import contextlib
import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, DAYS = 3650, 397  # for which the CA's certificate is good, and those that it signs
AHEAD = timedelta(minutes=5)  # clocks differ

Key = ec.EllipticCurvePrivateKey


class Authority(NamedTuple):
    """A certificate authority."""

    key: Key
    certificate: x509.Certificate


def make_ca() -> Authority:
    """Return a new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders CA")])
    builder = certificate(name, name, key, CA_DAYS)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Authority(key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA256()))


def make_certificate(ca: Authority, name: str, hosts: Sequence[str] = (), days: float = DAYS) -> bytes:
    """Return a key, its certificate and the CA's, in PEM, for what is called `name` and has these addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *[ExtendedKeyUsageOID.SERVER_AUTH] * bool(hosts)]
    builder = certificate(subject, ca.certificate.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([*map(general_name, hosts)]), critical=False)
    return in_pem(key) + in_pem(builder.sign(ca.key, hashes.SHA256())) + in_pem(ca.certificate)


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


def read_ca(folder: Path) -> Authority:
    """Return the authority whose key and certificate are in the folder."""
    key = serialization.load_pem_private_key((folder / "ca" / "ca.key").read_bytes(), None)
    return Authority(cast(Key, key), x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))


def expiry(file: Path) -> datetime:
    """Return until when the first certificate in the file is good."""
    return x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc
