"""A throw-away PostgreSQL server on loopback for tests and benchmarks.

python -m tests.postgres COMMAND...    # runs COMMAND with PREFIXLINE_MLFLOW_URI naming a fresh database on one
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy

from pipeline.tracking.connection import MLFLOW_URI, connect
from tests import mlflow_world

PASSWORD, QUOTED = "s3cret/p:w?", "s3cret%2Fp%3Aw%3F"
"""Of the only user: with what an address must quote."""


@dataclass
class Cluster:
    """A running server."""

    port: int
    number: Iterator[int] = field(default_factory=itertools.count)

    def uri(self, database: str) -> str:
        return f"postgresql://tester:{QUOTED}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        engine = sqlalchemy.create_engine(self.uri(database), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def empty(self) -> str:
        """The address of a new, empty database."""
        name = f"empty{next(self.number)}"
        self.execute(f"create database {name}")
        return self.uri(name)

    @functools.cached_property
    def _migrated(self) -> str:
        """A database in which MLflow's migrations have run: they take seconds, and every test needs its own."""
        self.execute("create database migrated")
        connect(self.uri("migrated"), artifact_root="file:///nowhere")
        return "migrated"

    def database(self) -> str:
        """The address of a new database with MLflow's tables."""
        template, name = self._migrated, f"mlflow{next(self.number)}"
        self.execute(f"create database {name} template {template}")
        return self.uri(name)


@functools.cache
def cluster() -> Cluster:
    """The server of this process, which ends with it."""
    context = running()
    atexit.register(context.__exit__, None, None, None)
    return context.__enter__()


@contextmanager
def running(*settings: str) -> Iterator[Cluster]:
    """A server in a temporary folder; `settings` as `fsync=off`."""
    binaries = _binaries()
    # Directly below /tmp: PostgreSQL runs as another user than root, who may not enter root's folders.
    folder = Path(tempfile.mkdtemp(prefix="prefixline-postgres-", dir="/tmp"))
    try:
        user = _as_user(folder)
        data, log, password = folder / "data", folder / "log", folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["-D", str(data), "-U", "tester", "--auth=scram-sha-256", f"--pwfile={password}"]
        initdb = [str(binaries / "initdb"), *options, "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run([*_prefix(user), *initdb], check=True, capture_output=True, cwd=folder)
        port = mlflow_world.free_port()
        # Every test's MLflow keeps its connections for as long as the process lives.
        where = [
            "max_connections=500",
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={folder}",
        ]
        server = [str(binaries / "postgres"), "-D", str(data)]
        for option in (*where, *settings):
            server += ["-c", option]
        with log.open("wb") as out:
            # Ended by the kernel where this process is killed.
            process = subprocess.Popen(
                [*_prefix(user, "--pdeathsig", "INT"), *server], stdout=out, stderr=out, cwd=folder
            )
        try:
            started = Cluster(port)
            _wait(started, process, log)
            yield started
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, whatever is connected
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            cluster.execute("select 1")
            return
        except sqlalchemy.exc.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def _binaries() -> Path:
    """Where `postgres` and `initdb` are: on the path, or where Debian puts the newest."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert folders, "PostgreSQL's server is not installed: make postgresql"
    return folders[-1]


def _as_user(folder: Path) -> str | None:
    """Whom PostgreSQL runs as, where we are root, whom it refuses; the folder is given to them."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    shutil.chown(folder, user)
    return user


def _prefix(user: str | None, *options: str) -> list[str]:
    if user is not None:
        entry = pwd.getpwnam(user)
        options = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *options)
    return ["setpriv", *options] if options else []


if __name__ == "__main__":
    with running() as started:
        done = subprocess.run(sys.argv[1:], env={**os.environ, MLFLOW_URI: started.empty()}, check=False)
    sys.exit(done.returncode)
