"""Bring the broker's users, their rights and the topics to what next_steps/security/rights.py says.

    python -m next_steps.security.apply            add what lacks, and tell what there is besides
    python -m next_steps.security.apply --prune    remove that: users and rights, never a topic

It may be run at any time, and again. Exit status: 0 done, 1 Kafka refused it, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # lacks in its __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

import tracker
from next_steps.security.check import refusal, with_connection
from next_steps.security.keystore import take_up
from next_steps.security.make_credentials import SECRETS
from next_steps.security.rights import RIGHTS, TOPICS, USERS, Right
from tracker import printable

LIMIT = 10  # seconds for each answer
SCRAM = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)  # the fewest rounds: these passwords can't be guessed
RULE = ("restype", "name", "resource_pattern_type", "principal", "host", "operation", "permission_type")
NO_NAME: Any = None  # which its type hint doesn't know
ALL_RULES = AclBindingFilter(
    ResourceType.ANY,
    NO_NAME,
    ResourcePatternType.ANY,
    NO_NAME,
    NO_NAME,
    AclOperation.ANY,
    AclPermissionType.ANY,
)


def apply(admin: AdminClient, folder: Path, prune: bool) -> Iterator[str]:
    """Do it, and yield what was done or found; KafkaException says what Kafka refused, SystemExit what else is wrong.

    The topics come first: a right to one that isn't there shows nobody whether it is spelt well.
    """
    yield from add_topics(admin)
    yield from add_users(admin, folder)
    yield from add_rights(admin)
    yield from other_users(admin, prune)
    yield from other_rules(admin, prune)
    own = properties(folder, "admin")
    yield from take_up(admin, folder / "broker" / "kafka.pem", own["bootstrap.servers"].partition(",")[0])


def add_topics(admin: AdminClient) -> Iterator[str]:
    """Make the topics that lack, with as many partitions as the broker's num.partitions says."""
    there = admin.list_topics(timeout=LIMIT).topics
    if missing := [NewTopic(name) for name in TOPICS if name not in there]:
        for name, made in admin.create_topics(missing, request_timeout=LIMIT).items():
            made.result()
            yield f"Added topic {name}"


def add_users(admin: AdminClient, folder: Path) -> Iterator[str]:
    """Give each user the password of its file where Kafka doesn't take that yet, as only Kafka can tell."""
    known = scram_users(admin)
    for user in USERS:
        own = properties(folder, user)
        if not (err := refusal(own)):
            continue
        if err.code() != KafkaError._AUTHENTICATION:
            sys.exit(f"User {user} can't be tried: {err.str()}. Run next_steps.security.check with its file")
        new = UserScramCredentialUpsertion(user, SCRAM, own["sasl.password"].encode())
        admin.alter_user_scram_credentials([new], request_timeout=LIMIT)[user].result()
        yield f"Gave user {user} another password" if (user, SCRAM.mechanism) in known else f"Added user {user}"


def properties(folder: Path, user: str) -> dict[str, Any]:
    """Return what a user's file says."""
    file = str(folder / f"{user}.properties")
    return tracker.read_config(with_connection(argparse.ArgumentParser()).parse_args(["-F", file]))


def add_rights(admin: AdminClient) -> Iterator[str]:
    """Give the rights that lack."""
    there = rules(admin)
    if missing := {rule(right): right for right in RIGHTS if rule(right) not in there}:
        for each, made in admin.create_acls([*missing], request_timeout=LIMIT).items():
            made.result()
            yield f"Added right {' '.join(missing[each])}"


def other_users(admin: AdminClient, prune: bool) -> Iterator[str]:
    """Tell, or remove, who is not in the table, and whose password is for another mechanism."""
    for user, mechanism in sorted(scram_users(admin) - {(user, SCRAM.mechanism) for user in USERS}, key=str):
        if prune:
            gone = UserScramCredentialDeletion(user, mechanism)
            admin.alter_user_scram_credentials([gone], request_timeout=LIMIT)[user].result()
        yield f"{'Removed' if prune else 'Found'} user {printable(user)} ({mechanism.name})"


def other_rules(admin: AdminClient, prune: bool) -> Iterator[str]:
    """Tell, or remove, the rules that are not in the table."""
    for each in sorted(rules(admin) - {*map(rule, RIGHTS)}, key=str):
        facts = [getattr(each, name) for name in RULE]
        if prune:
            for removed in admin.delete_acls([AclBindingFilter(*facts)], request_timeout=LIMIT).values():
                removed.result()
        words = ", ".join(printable(str(getattr(fact, "name", fact))) for fact in facts)
        yield f"{'Removed' if prune else 'Found'} rule {words}"


def may_alter(admin: AdminClient) -> bool:
    """Return whether the broker's users and rules may be changed."""
    cluster = admin.describe_cluster(include_authorized_operations=True, request_timeout=LIMIT).result()
    return AclOperation.ALTER in (cluster.authorized_operations or [])


def scram_users(admin: AdminClient) -> set[tuple[str, ScramMechanism]]:
    """Return the users who have a password, each with the mechanism that it is for."""
    found = cast(Any, admin.describe_user_scram_credentials(request_timeout=LIMIT)).result()
    return {(user, info.mechanism) for user, each in found.items() for info in each.scram_credential_infos}


def rules(admin: AdminClient) -> set[AclBinding]:
    """Return all rules that the broker has."""
    return set(admin.describe_acls(ALL_RULES, request_timeout=LIMIT).result())


def rule(right: Right) -> AclBinding:
    """Return the rule that gives the right."""
    pattern = ResourcePatternType.PREFIXED if right.name.endswith("*") else ResourcePatternType.LITERAL
    operation, allow = AclOperation[right.operation], AclPermissionType.ALLOW
    name, user = right.name.rstrip("*"), f"User:{right.user}"
    return AclBinding(ResourceType[right.kind], name, pattern, user, "*", operation, allow)


def main(argv: Sequence[str] | None = None) -> int:
    """Apply the table; return the exit status, SystemExit says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with_connection(parser, SECRETS / "apply.properties")
    parser.add_argument("--directory", type=Path, default=SECRETS, help="where the users' files are (%(default)s)")
    parser.add_argument("--prune", action="store_true", help="remove users and rights that are not in the table")
    args = parser.parse_args(argv)
    found = False
    try:
        config = tracker.read_config(args)
        if err := refusal(config):
            sys.exit(f"Kafka refused apply: {err.str()}. Run next_steps.security.check -F {args.file}")
        admin = AdminClient(config)
        # Without the right, librdkafka 2.16 aborts when asked for users, and when asked for rules says there are none.
        if not may_alter(admin):
            sys.exit(f"Kafka refused apply: Cluster authorization failed. Run it with {SECRETS / 'apply.properties'}")
        for line in apply(admin, args.directory, args.prune):
            print(line, flush=True)
            found |= line.startswith("Found")
    except KafkaException as error:
        if error.args[0].code() == KafkaError._INVALID_ARG:
            parser.error(error.args[0].str())
        sys.exit(f"Kafka refused apply: {error.args[0].str().rstrip('.')}. Check the broker's log, and run it again")
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    print("It is as the table says" + (", but for what was found: --prune removes it" if found else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
