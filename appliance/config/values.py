"""What the settings say, parsed and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config.keys import ROLES


@dataclass(frozen=True)
class Certificate:
    """Files of the site's own CA, PEM; with `client_ca`, clients show one too."""

    chain: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True)
class People:
    """Where they come in over TCP, with the site's certificate; with `client_ca`, their hosts show one too."""

    listen: tuple[str, int]
    client_ca: Path | None


@dataclass(frozen=True)
class Console:
    """Where browsers come in. `url`: the one address that they use, without a path; `client_ca` as for people."""

    listen: tuple[str, int]
    url: str
    client_ca: Path | None


@dataclass(frozen=True)
class Operations:
    listen: tuple[str, int]
    token: Path


@dataclass(frozen=True)
class Mail:
    """`to`: an address with `{person}` in it."""

    server: tuple[str, int]
    sender: str
    to: str


@dataclass(frozen=True)
class Notices:
    """`command`: a program by its whole path, and its words; either of both may be missing."""

    command: tuple[str, ...] | None
    mail: Mail | None
    every_s: float


@dataclass(frozen=True)
class Slurm:
    """The site's cluster, as its settings have it; None: Slurm's own default."""

    folder: Path
    partition: str | None
    account: str | None
    time_limit: str | None
    cpus: int
    memory: str | None
    gres: str | None
    python: str | None
    scratch: str
    warning_s: int
    patience_s: float
    commands: Path


@dataclass(frozen=True)
class Folder:
    """What a person's side knows of an appliance: where its folder is, which may be another account's."""

    home: Path

    @property
    def socket(self) -> Path:
        return self.home / "run" / "appliance.sock"

    @property
    def lock(self) -> Path:
        return self.home / "appliance.lock"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


@dataclass(frozen=True)
class Settings:
    home: Path
    database_url: str
    migration_url: str
    listen: tuple[str, int] | None
    witnessed: Path
    socket_group: str | None = None
    """Its members reach the people's socket."""
    certificate: Certificate | None = None
    people: People | None = None
    console: Console | None = None
    operations: Operations | None = None
    notices: Notices | None = None
    traces: str | None = None
    """The address of a collector, without a path."""
    process: str = ""
    roles: frozenset[str] = ROLES
    shared: Path | None = None
    """Where artifacts, training checkpoints and steps are, if not in the home."""
    keyring: Path | None = None
    rehash_s: float | None = 3600.0
    """Between two checks of every sealed folder; None: only when something is loaded."""
    import_s: float = 600.0
    import_cpu_s: float = 300.0
    prompt_cache_bytes: int = 256 << 20
    vllm_packages: Path | None = None
    """Where vLLM is installed, if it is the engine."""
    harness_packages: Path | None = None
    """A folder of Python packages that the worker of tasks and metrics alone is shown."""
    runs_on: str = "here"
    slurm: Slurm | None = None
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By unit, and under "" for every other, those that were given."""

    @property
    def database_file(self) -> Path | None:
        """Where SQLite keeps the ledger; None where a server does."""
        file = self.database_url.removeprefix("sqlite:///")
        return None if file == self.database_url else Path(file)

    @property
    def socket(self) -> Path:
        """The people's door: a Unix socket, mode 0600, or 0660 for a group."""
        return Folder(self.home).socket

    @property
    def lock(self) -> Path:
        return Folder(self.home).lock

    @property
    def keys(self) -> Path:
        return self.keyring or self.home / "keys"

    @property
    def logs(self) -> Path:
        return Folder(self.home).logs

    @property
    def snapshot(self) -> Path:
        return self.home.resolve() / "fold.snapshot"

    @property
    def trust(self) -> Path:
        """The service's own copy; the one that counts was taken elsewhere at init."""
        return self.home / "trust.json"
