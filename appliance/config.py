"""Settings: the environment and `<home>/appliance.toml`, read once, frozen. An unknown key is refused.

`SETTINGS` is the one list of them, with the variable, default and meaning of each; docs/reference/configuration.md is
written from it (`appliance config --markdown`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from appliance.errors import BadInput

DEFAULT_HOME = "~/.local/share/appliance"


class Setting(NamedTuple):
    """A key of appliance.toml, and the environment's variable that stands over it. `default` None: nothing is set."""

    name: str
    variable: str
    default: str | None
    meaning: str


_SCRATCH = "/var/tmp"  # noqa: S108 on a node, where a job makes a private folder in it

SETTINGS = (
    Setting(
        "home", "APPLIANCE_HOME", DEFAULT_HOME, "the data folder: keys, artifacts and the SQLite ledger; not a key"
    ),
    Setting(
        "database_url", "APPLIANCE_DATABASE_URL", None, "the ledger's database; SQLite at HOME/ledger.db unless set"
    ),
    Setting("migration_url", "APPLIANCE_MIGRATION_URL", None, "the owner's login, where it is not the service's"),
    Setting("process", "APPLIANCE_PROCESS", None, "this process's name, where several serve one PostgreSQL"),
    Setting("roles", "APPLIANCE_ROLES", "people, units, runs", "what this process does; fewer need PostgreSQL"),
    Setting("shared", "APPLIANCE_SHARED", None, "the folder of sealed folders and checkpoints; the home unless set"),
    Setting("keys", "APPLIANCE_KEYS", "keys", "the keyring's folder, mode 0700, the same for every process"),
    Setting("listen", "APPLIANCE_LISTEN", "127.0.0.1:8331", "HOST:PORT of the units' door, or `off`"),
    Setting("witnessed", "APPLIANCE_WITNESSED", "witnessed", "the folder of what witnesses have seen"),
    Setting("socket_group", "APPLIANCE_SOCKET_GROUP", None, "the Unix group whose members reach the people's socket"),
    Setting(
        "certificate", "APPLIANCE_CERTIFICATE", None, "PEM: the certificate of the site's CA and its chain; then TLS"
    ),
    Setting("certificate_key", "APPLIANCE_CERTIFICATE_KEY", None, "PEM: its private key, mode 0600, no passphrase"),
    Setting("client_ca", "APPLIANCE_CLIENT_CA", None, "PEM: only hosts with a certificate of this CA are let in"),
    Setting("people", "APPLIANCE_PEOPLE", "off", "HOST:PORT where people of other machines come in, or `off`"),
    Setting(
        "people_client_ca", "APPLIANCE_PEOPLE_CLIENT_CA", None, "PEM: only hosts with its certificate get in there"
    ),
    Setting("console", "APPLIANCE_CONSOLE", "off", "HOST:PORT of the console, such as 127.0.0.1:8330, or `off`"),
    Setting("console_url", "APPLIANCE_CONSOLE_URL", None, "its address in browsers, such as https://desk.example:8330"),
    Setting("operations", "APPLIANCE_OPERATIONS", "off", "HOST:PORT of /healthz, /readyz and /metrics, or `off`"),
    Setting("operations_token", "APPLIANCE_OPERATIONS_TOKEN", None, "a 0600 file with the token for /metrics"),
    Setting("notice_command", "APPLIANCE_NOTICE_COMMAND", None, "a program of the site's own that carries notices"),
    Setting("notice_smtp", "APPLIANCE_NOTICE_SMTP", "off", "HOST:PORT of a mail server that carries notices, or `off`"),
    Setting("notice_from", "APPLIANCE_NOTICE_FROM", None, "the address that mails with notices come from"),
    Setting("notice_to", "APPLIANCE_NOTICE_TO", None, "a person's address, such as `{person}@bank.example`"),
    Setting("notice_minutes", "APPLIANCE_NOTICE_MINUTES", "15", "minutes between two notices to one person, at least"),
    Setting("traces", "APPLIANCE_TRACES", "off", "URL of a collector that takes traces by OTLP over HTTP, or `off`"),
    Setting("plaintext", "APPLIANCE_PLAINTEXT", None, "`accepted`: a listener beyond loopback may do without TLS"),
    Setting("rehash", "APPLIANCE_REHASH", "60", "minutes between two checks of every sealed folder, or `off`"),
    Setting("import_minutes", "APPLIANCE_IMPORT_MINUTES", "10", "minutes that a small import may take"),
    Setting(
        "import_cpu_minutes", "APPLIANCE_IMPORT_CPU_MINUTES", "5", "minutes of CPU time that a small import may use"
    ),
    Setting("engine", "APPLIANCE_ENGINE", "builtin", "what answers units: `builtin` or `vllm`"),
    Setting("vllm_packages", "APPLIANCE_VLLM_PACKAGES", None, "the folder where vLLM and its libraries are installed"),
    Setting(
        "harness_packages", "APPLIANCE_HARNESS_PACKAGES", None, "the folder where lm-eval and evaluate are installed"
    ),
    Setting("runs_on", "APPLIANCE_RUNS_ON", "here", "where runs ordered without --on train: `here` or `slurm`"),
    Setting(
        "slurm_folder", "APPLIANCE_SLURM_FOLDER", None, "the folder that every node of the cluster sees under this path"
    ),
    Setting(
        "slurm_partition", "APPLIANCE_SLURM_PARTITION", None, "the partition of its jobs; Slurm's default unless set"
    ),
    Setting("slurm_account", "APPLIANCE_SLURM_ACCOUNT", None, "the account of people to whom policy gives none"),
    Setting("slurm_time_limit", "APPLIANCE_SLURM_TIME_LIMIT", None, "a job's time limit, such as 1-00:00:00"),
    Setting("slurm_cpus", "APPLIANCE_SLURM_CPUS", "1", "the CPUs that a job asks for"),
    Setting("slurm_memory", "APPLIANCE_SLURM_MEMORY", None, "the memory that a job asks for, such as 32G"),
    Setting("slurm_gres", "APPLIANCE_SLURM_GRES", None, "what else a job asks for, such as gpu:1"),
    Setting("slurm_python", "APPLIANCE_SLURM_PYTHON", None, "the nodes' Python that has the appliance installed"),
    Setting("slurm_scratch", "APPLIANCE_SLURM_SCRATCH", _SCRATCH, "the nodes' folder for what a job reads and writes"),
    Setting("slurm_warning", "APPLIANCE_SLURM_WARNING", "120", "seconds before the time limit to warn a job"),
    Setting("slurm_patience", "APPLIANCE_SLURM_PATIENCE", "15", "minutes to wait for slurmctld before a run fails"),
    Setting("slurm_commands", "APPLIANCE_SLURM_COMMANDS", "/usr/bin", "the folder of Slurm's commands, such as sbatch"),
)
ROLES = frozenset({"people", "units", "runs"})
VARIABLES = {setting.name: setting.variable for setting in SETTINGS if setting.name != "home"}
"""Of each setting but the home: the environment's, which stands over the file's."""
_DEFAULTS = {setting.name: setting.default for setting in SETTINGS if setting.default is not None}


LIMIT_MEANINGS = {
    "concurrent": "requests at once",
    "requests_per_minute": "requests that begin in a minute",
    "tokens_per_minute": "tokens read and written in a minute",
    "tokens_per_day": "tokens read and written in a day",
}
LIMITS = tuple(LIMIT_MEANINGS)
_MOST = 10**12


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
    vllm_packages: Path | None = None
    """Where vLLM is installed, if it is the engine."""
    harness_packages: Path | None = None
    """A folder of Python packages that the worker of tasks and metrics alone is shown."""
    runs_on: str = "here"
    slurm: Slurm | None = None
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By unit, and under "" for every other, those that were given."""

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


def find_folder(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Folder:
    """The folder that was named, or that of the environment, or the default; no file is read."""
    env = os.environ if environment is None else environment
    place = home or Path(env.get("APPLIANCE_HOME") or _default_home(env))
    return Folder(place.expanduser().absolute())


def load_settings(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Environment over file over default; BadInput names an unknown key or a value that does not fit."""
    env = os.environ if environment is None else environment
    place = find_folder(home, env).home
    given, limits = _read_file(place / "appliance.toml")
    values = _DEFAULTS | given | {key: env[name] for key, name in VARIABLES.items() if env.get(name)}
    database_url = values.get("database_url", f"sqlite:///{place / 'ledger.db'}")
    listen, certificate = _parse_listen(values["listen"]), _certificate(values, place)
    operations, people = _operations(values, place), _people(values, place, certificate)
    console = _console(values, place, certificate)
    roles = _roles(values, database_url)
    for door in (listen, *(other.listen for other in (operations, people, console) if other is not None)):
        _check_plaintext(values.get("plaintext"), door, certificate)
    if "people" not in roles:
        people = console = None
    if "units" not in roles:
        listen = None
    return Settings(
        home=place,
        database_url=database_url,
        migration_url=values.get("migration_url", database_url),
        listen=listen,
        witnessed=place / values["witnessed"],
        socket_group=values.get("socket_group"),
        certificate=certificate,
        people=people,
        console=console,
        operations=operations,
        notices=_notices(values),
        traces=_traces(values["traces"]),
        process=_parse_process(values.get("process")),
        roles=roles,
        shared=place / values["shared"] if "shared" in values else None,
        keyring=place / values["keys"],
        rehash_s=_parse_minutes(values["rehash"], "rehash"),
        import_s=_parse_some_minutes(values["import_minutes"], "import_minutes"),
        import_cpu_s=_parse_some_minutes(values["import_cpu_minutes"], "import_cpu_minutes"),
        vllm_packages=_vllm(values, place),
        harness_packages=place / values["harness_packages"] if "harness_packages" in values else None,
        runs_on=_runs_on(values),
        slurm=_slurm(values),
        limits=limits,
    )


def _runs_on(values: Mapping[str, str]) -> str:
    if values["runs_on"] not in ("here", "slurm"):
        raise BadInput(f"settings, runs_on: expected here or slurm, got {values['runs_on']!r}")
    if values["runs_on"] == "slurm" and "slurm_folder" not in values:
        raise BadInput("settings, runs_on: expected slurm_folder beside it, got none")
    return values["runs_on"]


_SLURM_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+=-]{0,127}")


def _slurm(values: Mapping[str, str]) -> Slurm | None:
    """None where no shared folder is set."""
    if "slurm_folder" not in values:
        return None
    for name in ("slurm_folder", "slurm_scratch", "slurm_commands", "slurm_python"):
        if name in values and not values[name].startswith("/"):
            raise BadInput(f"settings, {name}: expected an absolute path, got {values[name]!r}")
    words = {name: values.get(f"slurm_{name}") for name in ("partition", "account", "time_limit", "memory", "gres")}
    for name, word in words.items():
        if word is not None and _SLURM_WORD.fullmatch(word) is None:
            raise BadInput(f"settings, slurm_{name}: expected one word as sbatch takes it, got {word!r}")
    numbers = {
        name: _parse_number(values[f"slurm_{name}"], f"slurm_{name}") for name in ("cpus", "warning", "patience")
    }
    return Slurm(
        folder=Path(values["slurm_folder"]),
        **words,
        cpus=numbers["cpus"],
        python=values.get("slurm_python"),
        scratch=values["slurm_scratch"],
        warning_s=numbers["warning"],
        patience_s=60.0 * numbers["patience"],
        commands=Path(values["slurm_commands"]),
    )


def _parse_number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise BadInput(f"settings, {name}: expected a whole number from 1 to 65535, got {text!r}")
    return int(text)


class Explained(NamedTuple):
    """A setting as it stands. `source`: `environment`, `appliance.toml`, `option` or `default`."""

    name: str
    variable: str | None
    default: str | None
    value: str | None
    source: str
    meaning: str


def explain_settings(home: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Explained]:
    """Every setting, and where its value comes from; a password in a database's URL is not shown. BadInput as
    `load_settings` has it."""
    env = os.environ if environment is None else environment
    place = load_settings(home, env).home
    given, limits = _read_file(place / "appliance.toml")
    found = [_explain(setting, home, place, given, env) for setting in SETTINGS]
    for unit, values in sorted(limits.items()):
        table = f"limits.{unit}" if unit else "limits"
        found += [
            Explained(f"{table}.{key}", None, "0", str(value), "appliance.toml", LIMIT_MEANINGS[key])
            for key, value in values.items()
        ]
    return found


def _explain(
    setting: Setting, home: Path | None, place: Path, given: Mapping[str, str], env: Mapping[str, str]
) -> Explained:
    name, variable, default, meaning = setting
    if name == "home":
        named = home is not None and str(home) != env.get(variable)
        source = "option" if named else "environment" if env.get(variable) else "default"
        return Explained(name, variable, default, str(place), source, meaning)
    source = "environment" if env.get(variable) else "appliance.toml" if name in given else "default"
    value = env.get(variable) or given.get(name, default)
    return Explained(name, variable, default, _without_password(value), source, meaning)


def _without_password(value: str | None) -> str | None:
    if value is None or "://" not in value:
        return value
    parts = urlsplit(value)
    if parts.password is None and "password" not in parts.query:
        return value
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}", query="***" if parts.query else ""))


def render_page() -> str:
    """docs/reference/configuration.md."""
    rows = [
        f"| `{name}` | `{variable}` | {'' if default is None else f'`{default}`'} | {meaning} |"
        for name, variable, default, meaning in SETTINGS
    ]
    limits = [f"| `{name}` | {meaning} |" for name, meaning in LIMIT_MEANINGS.items()]
    return _PAGE.format(rows="\n".join(rows), limits="\n".join(limits))


_PAGE = """# Configuration

Settings are keys of `<home>/appliance.toml`. A variable of the environment stands over the file,
and the file over the default. An unknown key is refused. A relative path is below the home.
`appliance config` prints the value of each setting and where it comes from. This page is written by
`appliance config --markdown`; [operations.md](../operations.md) says how the settings work
together.

| key | environment | default | meaning |
| --- | --- | --- | --- |
{rows}

## Limits

`[limits]` holds for every unit, `[limits.UNIT]` for one alone. 0 means no limit, and so does a
limit that is not set.

| key | meaning |
| --- | --- |
{limits}
"""


_PROCESS = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def _parse_process(name: str | None) -> str:
    if name is not None and _PROCESS.fullmatch(name) is None:
        raise BadInput(
            "settings, process: expected lower-case letters, digits and hyphens, at most 40, such as gateway-1, "
            f"got {name!r:.60}"
        )
    return name or ""


def _roles(values: Mapping[str, str], database_url: str) -> frozenset[str]:
    given = [role.strip() for role in values["roles"].split(",")]
    for role in given:
        if role not in ROLES:
            raise BadInput(f"settings, roles: expected some of people, units, runs, with commas between, got {role!r}")
    roles = frozenset(given)
    if roles == ROLES:
        return roles
    if database_url.startswith("sqlite:"):
        raise BadInput(
            f"settings, roles: expected people, units, runs, since one process serves a ledger on SQLite, got "
            f"{values['roles']!r}; several processes need PostgreSQL (database_url)"
        )
    if "process" not in values:
        raise BadInput(
            f"settings, roles {values['roles']!r}: expected a name for this process too (process), which is one of "
            "several, got none"
        )
    return roles


def _certificate(values: Mapping[str, str], place: Path) -> Certificate | None:
    chain, key, client_ca = (values.get(name) for name in ("certificate", "certificate_key", "client_ca"))
    if chain is None and key is None and client_ca is None:
        return None
    if chain is None or key is None:
        raise BadInput("settings, certificate: expected certificate and certificate_key, got one without the other")
    return Certificate(place / chain, place / key, None if client_ca is None else place / client_ca)


def _people(values: Mapping[str, str], place: Path, certificate: Certificate | None) -> People | None:
    listen, ca = _parse_listen(values["people"]), values.get("people_client_ca")
    if listen is None:
        return None
    if ca is None:
        return People(listen, None)
    if certificate is None:
        raise BadInput("settings, people_client_ca: expected certificate and certificate_key beside it, got neither")
    return People(listen, place / ca)


_URL = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([1-9][0-9]{0,4}))?")


def _console(values: Mapping[str, str], place: Path, certificate: Certificate | None) -> Console | None:
    """Passkeys take no IP address, so without TLS browsers use localhost, and under it the host's name."""
    listen, url, ca = _parse_listen(values["console"]), values.get("console_url"), values.get("people_client_ca")
    if listen is None:
        return None
    scheme = "http" if certificate is None else "https"
    if url is None:
        if certificate is not None or not is_loopback(listen[0]):
            example = f"{scheme}://appliance.example:{listen[1]}"
            raise BadInput(f"settings, console: expected console_url beside it, such as {example}, got none")
        url = f"http://localhost:{listen[1]}"
    found = _URL.fullmatch(url)
    # Behind a proxy that ends TLS, browsers say https though the listener has no certificate.
    if found is None or (found[1] == "http" and (certificate is not None or not is_loopback(found[2]))):
        expected = "https://NAME:PORT in lower case without a path, or http://localhost:PORT without TLS"
        raise BadInput(f"settings, console_url: expected {expected}, got {url!r}")
    return Console(listen, url, None if ca is None or certificate is None else place / ca)


def _operations(values: Mapping[str, str], place: Path) -> Operations | None:
    listen, token = _parse_listen(values["operations"]), values.get("operations_token")
    if listen is None:
        return None
    if token is None:
        raise BadInput(
            "settings, operations: expected operations_token too, because the metrics need a token, got none"
        )
    return Operations(listen, place / token)


def _vllm(values: Mapping[str, str], place: Path) -> Path | None:
    engine, packages = values["engine"], values.get("vllm_packages")
    if engine not in ("builtin", "vllm"):
        raise BadInput(f"settings, engine: expected builtin or vllm, got {engine!r}")
    if engine == "builtin":
        return None
    if packages is None:
        raise BadInput("settings, vllm_packages: expected the site-packages of an environment with vLLM, got none")
    return place / packages


_COLLECTOR = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(?::[1-9][0-9]{0,4})?")


def _notices(values: Mapping[str, str]) -> Notices | None:
    """Off unless a program or a mail server is named."""
    command, server = values.get("notice_command"), _parse_listen(values["notice_smtp"])
    every_s = _parse_some_minutes(values["notice_minutes"], "notice_minutes")
    mail = None
    if server is not None:
        if not is_loopback(server[0]) and values.get("plaintext") != "accepted":
            expected = 'a server on loopback, or plaintext = "accepted", since names of people are in a notice'
            raise BadInput(f"settings, notice_smtp: expected {expected}, got {server[0]}")
        mail = Mail(server, *(_address(values, name) for name in ("notice_from", "notice_to")))
        if mail.to.count("{person}") != 1 or "{person}" in mail.sender:
            raise BadInput(
                f"settings, notice_to: expected an address with {{person}} once, such as {{person}}@bank.example, "
                f"got {mail.to!r:.80}"
            )
    if command is None:
        return None if mail is None else Notices(None, mail, every_s)
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise BadInput(f"settings, notice_command: expected a program and its words, got {error}") from None
    if not words or not Path(words[0]).is_absolute():
        raise BadInput(f"settings, notice_command: expected the whole path of a program, got {command!r:.80}")
    return Notices(words, mail, every_s)


_ADDRESS = re.compile(r"[A-Za-z0-9._+{}-]{1,64}@[A-Za-z0-9.{}-]{1,190}")


def _address(values: Mapping[str, str], name: str) -> str:
    text = values.get(name)
    if text is None or not _ADDRESS.fullmatch(text):
        raise BadInput(f"settings, {name}: expected an address beside notice_smtp, got {text!r:.80}")
    return text


def _traces(value: str) -> str | None:
    """Names of units and adapters cross a network under TLS alone."""
    if value == "off":
        return None
    found = _COLLECTOR.fullmatch(value.removesuffix("/"))
    if found is None or (found[1] == "http" and not is_loopback(found[2].strip("[]"))):
        expected = "https://HOST:PORT without a path, or http://127.0.0.1:4318 on this machine"
        raise BadInput(f"settings, traces: expected {expected}, or off, got {value!r}")
    return found[0]


def _check_plaintext(accepted: str | None, listen: tuple[str, int] | None, certificate: Certificate | None) -> None:
    """Tokens and prompts do not cross a network in the clear unless somebody wrote that they may."""
    if accepted not in (None, "accepted"):
        raise BadInput(f'settings, plaintext: expected "accepted" or nothing, got {accepted!r}')
    if listen is not None and certificate is None and accepted is None and not is_loopback(listen[0]):
        raise BadInput(
            f"settings, listen {listen[0]}: expected loopback, or certificate and certificate_key, "
            'or plaintext = "accepted", got an address on a network, without TLS'
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_home(env: Mapping[str, str]) -> str:
    data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or "~", ".local", "share")
    return os.path.join(data, "appliance")


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """The texts, and the limits."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"settings, {path}: expected TOML, got {error}") from None
    limits = _parse_limits(content.pop("limits", {}), f"settings, {path}")
    for key, value in content.items():
        _check_known(key, (*VARIABLES, "limits"), f"settings, {path}")
        if not isinstance(value, str):
            raise BadInput(f"settings, {path}, {key}: expected text, got {value!r}")
    return content, limits


def _check_known(key: str, known: Collection[str], what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"{what}, key {key!r}: expected one of {', '.join(known)}{hint}")


def _parse_limits(table: object, what: str) -> dict[str, dict[str, int]]:
    """Unit to limits. A unit's own table begins with what every unit has."""
    if not isinstance(table, dict):
        raise BadInput(f"{what}, limits: expected a table, got {table!r}")
    common: dict[str, int] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            common[key] = _parse_limit(key, value, f"{what}, limits")
    own = {unit: value for unit, value in table.items() if isinstance(value, dict)}
    found = {
        unit: common | {key: _parse_limit(key, value, f"{what}, limits.{unit}") for key, value in values.items()}
        for unit, values in own.items()
    }
    return {"": common, **found} if table else {}


def _parse_limit(key: str, value: object, what: str) -> int:
    _check_known(key, LIMITS, what)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise BadInput(f"{what}, {key}: expected a whole number from 0 to {_MOST}, got {value!r}")
    return value


def _parse_minutes(text: str, what: str) -> float | None:
    """In seconds."""
    return None if text == "off" else _parse_some_minutes(text, what, " or off")


def _parse_some_minutes(text: str, what: str, or_else: str = "") -> float:
    """In seconds."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 100_000:
        raise BadInput(f"settings, {what}: expected minutes above 0{or_else}, got {text!r}")
    return minutes * 60


def _parse_listen(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise BadInput(f"settings, listen: expected HOST:PORT or off, got {text!r}")
    return host.strip("[]"), int(port)
