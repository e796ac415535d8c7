"""The settings of a process: variables of the environment over keys of `<home>/appliance.toml` over defaults.

They are read once. A setting is one field of `Settings`; docs/reference/configuration.md is generated from the fields.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from appliance.config.folder import HomePaths, find_folder
from appliance.errors import BadInput, refuse
from appliance.formats.core.toml import parse_toml

PREFIX = "APPLIANCE_"
"""The beginning of each variable's name."""
FILE = "appliance.toml"
"""The name of the file in the home."""
COMMAND_VARIABLES = frozenset({"APPLIANCE_KEY", "APPLIANCE_PRINCIPAL", "APPLIANCE_TRUST", "APPLIANCE_DEBUG"})
"""Variables of the command line. They are no settings of the service."""
SIGNER_VARIABLES = frozenset({"APPLIANCE_SIGNER_FOLDER", "APPLIANCE_SIGNER_DATABASE", "APPLIANCE_SIGNER_PKCS11"})
"""Variables of the signer's commands, of which `signer adopt` reads the service's settings as well."""
HOME_VARIABLE = "APPLIANCE_HOME"
Environment = Mapping[str, str] | None
"""Variables of an environment; None stands for this process's own."""
Role = Literal["people", "units", "runs"]
ROLES: tuple[Role, ...] = get_args(Role)
_LISTENERS = {"people": ("people", "console"), "units": ("listen",)}
"""Listeners that are off in a process without the role."""
_LARGEST_LIMIT = 10**12
_PRIVATE_KEY = "AGE-SECRET-KEY-"
"""The beginning of a private key of age, which no message shows."""
_MOST_DESCRIBED = 40
"""Largest number of problems that are described; the others are counted."""
_URL = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([1-9][0-9]{0,4}))?")
_COLLECTOR = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(?::[1-9][0-9]{0,4})?")


def is_loopback(host: str) -> bool:
    """Return True if the host is a loopback address or localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_verified_database(url: str) -> bool:
    """Return True if a database is a file, on this machine, or on a server whose certificate and name are verified.

    PostgreSQL's library connects without TLS if a server says that it has none. Somebody on the network can say so in
    its place, ask for the password, and read every text. What the URL leaves out, the library reads from the
    environment.
    """
    if not url.startswith("postgres"):
        return True
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    query = parse_qs(parts.query)
    given = [parts.hostname or "", *query.get("host", ()), *query.get("hostaddr", ())]
    if not any(given):
        given = [os.environ.get("PGHOST", ""), os.environ.get("PGHOSTADDR", "")]
    hosts = [host.rpartition(":")[0] if host.count(":") == 1 else host for host in ",".join(given).split(",")]
    is_local = all(not host or host.startswith(("/", "@")) or is_loopback(host) for host in hosts)
    if is_local and "service" not in query and "PGSERVICE" not in os.environ:
        return True
    return query.get("sslmode", [os.environ.get("PGSSLMODE", "")]) == ["verify-full"]


def _matching(pattern: str, words: str) -> AfterValidator:
    """Return the check of a text by a pattern, which errors describe in words."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {words}")
        return text

    return AfterValidator(check)


def _parse_address(value: object) -> tuple[str, int] | None:
    """Parse HOST:PORT into host and port; `off` gives None."""
    if value == "off":
        return None
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("expected HOST:PORT or off")
    return host.strip("[]"), int(port)


def _parse_number(value: object) -> object:
    """Parse the digits of a whole number. Other values are left to the field's type."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


def _parse_minutes(value: object) -> float:
    try:
        minutes = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else 0.0
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 100_000:
        raise ValueError("expected minutes above 0")
    return minutes


def _parse_minutes_or_off(value: object) -> float | None:
    try:
        return None if value == "off" else _parse_minutes(value)
    except ValueError as error:
        raise ValueError(f"{error} or off") from None


def _parse_command(value: object) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(value)) if isinstance(value, str) else ()
    except ValueError:  # an open quotation
        words = ()
    if not words or not Path(words[0]).is_absolute():
        raise ValueError("expected the absolute path of a program and its arguments")
    return words


def _parse_list(value: object) -> object:
    """Parse words with commas between them."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _parse_collector(text: str) -> str | None:
    """Return the collector's address without a path; `off` gives None.

    Traces have the names of units and adapters, so they cross a network by TLS only.
    """
    if text == "off":
        return None
    found = _COLLECTOR.fullmatch(text.removesuffix("/"))
    if found is None or (found[1] == "http" and not is_loopback(found[2].strip("[]"))):
        raise ValueError("expected https://HOST:PORT without a path, or http://127.0.0.1:4318 on this machine, or off")
    return found[0]


def _place_below_home(path: Path, info: ValidationInfo) -> Path:
    return Path(info.data["home"]) / path


def _check_absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("expected an absolute path")
    return path


def _group_by_unit(value: object) -> object:
    """Return the tables of `[limits]` by unit, with the common limits under ""."""
    if not isinstance(value, dict):
        raise ValueError("expected a table")
    units = {unit: limits for unit, limits in value.items() if isinstance(limits, dict)}
    return {"": {name: limit for name, limit in value.items() if name not in units}, **units}


def _add_common(limits: dict[str, LimitSettings]) -> dict[str, LimitSettings]:
    """Return the limits of each unit with the common ones where it has none of its own."""
    common = limits[""]
    return {unit: common.model_copy(update=own.model_dump(exclude_unset=True)) for unit, own in limits.items()}


Address = Annotated[tuple[str, int] | None, BeforeValidator(_parse_address)]
"""Host and port of a listener or server; None if it is off."""
Number = Annotated[int, Field(strict=True, ge=1, le=65_535), BeforeValidator(_parse_number)]
Mebibytes = Annotated[int, Field(strict=True, ge=0, le=1 << 20), BeforeValidator(_parse_number)]
Minutes = Annotated[float, BeforeValidator(_parse_minutes)]
Command = Annotated[tuple[str, ...], BeforeValidator(_parse_command)]
HomePath = Annotated[Path, AfterValidator(_place_below_home)]
"""A path; a relative one is below the home."""
NodePath = Annotated[Path, AfterValidator(_check_absolute)]
"""An absolute path on the cluster's nodes, or here."""
_PROCESS_WORDS = "lower-case letters, digits and hyphens, at most 40, such as gateway-1"
ProcessName = Annotated[str, _matching(r"([a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?)?", _PROCESS_WORDS)]
Sender = Annotated[str, _matching(r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,190}", "a mail address")]
Recipient = Annotated[
    str,
    _matching(
        r"(?=[^{}]*\{person\}[^{}]*$)[A-Za-z0-9._+{}-]{1,64}@[A-Za-z0-9.{}-]{1,190}",
        "a mail address with {person} once, such as {person}@bank.example",
    ),
]
BackupKey = Annotated[str, _matching(r"age1[02-9ac-hj-np-z]{58}", "a public key of age, age1 and 58 characters")]
BackupKeys = Annotated[tuple[BackupKey, ...], BeforeValidator(_parse_list)]
SlurmWord = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.,:+=-]{0,127}", "one word as sbatch takes it")]
Limit = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_LIMIT)]


class LimitSettings(BaseModel):
    """The limits of one unit. 0 means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrent: Limit = Field(16, description="requests at once")
    requests_per_minute: Limit = Field(1_200, description="requests that begin in a minute")
    tokens_per_minute: Limit = Field(0, description="tokens read and written in a minute")
    tokens_per_day: Limit = Field(0, description="tokens read and written in a day")


def _setting(default: str | None, meaning: str) -> Any:
    """Declare a setting by its default, as people write it, and its meaning. A default of None leaves it unset."""
    return Field(default, description=meaning, validate_default=True)


def _default_database(data: dict[str, Any]) -> SecretStr:
    return SecretStr(f"sqlite:///{data['home'] / 'ledger.db'}")


def _default_console_url(data: dict[str, Any]) -> str | None:
    console, certificate = data["console"], data["certificate"]
    is_local = console is not None and certificate is None and is_loopback(console[0])
    return f"http://localhost:{console[1]}" if is_local else None


class Settings(HomePaths, BaseSettings):
    """All settings of a process. A secret value is hidden in messages and representations."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        enable_decoding=False,
        env_file=None,
        secrets_dir=None,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(description="the data folder: keys, artifacts and the SQLite ledger; not a key")
    database_url: SecretStr = Field(
        default_factory=_default_database, description="the ledger's database; SQLite at HOME/ledger.db unless set"
    )
    migration_url: SecretStr = Field(
        default_factory=lambda data: data["database_url"],
        description="URL with the login of the database's owner, if the service has another login",
    )
    process: ProcessName = _setting("", "name of this process, if several processes share one PostgreSQL")
    roles: Annotated[frozenset[Role], BeforeValidator(_parse_list)] = _setting(
        "people, units, runs", "roles of this process; fewer than all need PostgreSQL"
    )
    shared: HomePath = Field(
        default_factory=lambda data: data["home"],
        description="the folder of sealed folders and training checkpoints; the home unless set",
    )
    keys: HomePath = _setting("keys", "the keyring's folder, mode 0700, the same for every process")
    signer_socket: HomePath | None = _setting(None, "the signer's socket; unset, the keyring has the signing keys")
    listen: Address = _setting("127.0.0.1:8331", "HOST:PORT of the units' API, or `off`")
    witnessed: HomePath = _setting("witnessed", "the folder of the checkpoints that witnesses have cosigned")
    socket_group: str | None = _setting(None, "the Unix group whose members may use the people's socket")
    certificate: HomePath | None = _setting(None, "PEM: the certificate of the site's CA and its chain; then TLS")
    certificate_key: HomePath | None = _setting(None, "PEM: its private key, mode 0600, no passphrase")
    client_ca: HomePath | None = _setting(None, "PEM: hosts of units and operations must show a certificate of this CA")
    people: Address = _setting("off", "HOST:PORT of the people's API for other machines, or `off`")
    people_client_ca: HomePath | None = _setting(None, "PEM: people's hosts must show a certificate of this CA")
    console: Address = _setting("off", "HOST:PORT of the console, such as 127.0.0.1:8330, or `off`")
    console_url: str | None = Field(
        default_factory=_default_console_url,
        description="the console's address in browsers, such as https://appliance.example:8330",
    )
    operations: Address = _setting("off", "HOST:PORT of /healthz, /readyz and /metrics, or `off`")
    operations_token: HomePath | None = _setting(None, "a 0600 file with the token for /metrics")
    feed_token: HomePath | None = _setting(None, "a 0600 file with the token for /feed; without it there is no feed")
    notification_command: Command | None = _setting(
        None, "the absolute path and arguments of a program that sends notifications"
    )
    notification_smtp: Address = _setting("off", "HOST:PORT of a mail server for notifications, or `off`")
    notification_from: Sender | None = _setting(None, "the sender of notifications by mail")
    notification_to: Recipient | None = _setting(
        None, "the recipient of notifications by mail, such as `{person}@bank.example`"
    )
    notification_minutes: Minutes = _setting("15", "least minutes between two notifications to one person")
    traces: Annotated[str | None, AfterValidator(_parse_collector)] = _setting(
        "off", "URL of a collector for traces, by OTLP over HTTP, or `off`"
    )
    plaintext: Literal["accepted"] | None = _setting(
        None, "`accepted`: listeners and a database beyond loopback need no TLS"
    )
    log_level: Literal["info", "warning"] = _setting("info", "`warning` leaves entries out of the service's log")
    rehash: Annotated[float | None, BeforeValidator(_parse_minutes_or_off)] = _setting(
        "60", "minutes between two checks of every sealed folder, or `off`"
    )
    import_minutes: Minutes = _setting("10", "minutes that a small import may take")
    import_cpu_minutes: Minutes = _setting("5", "minutes of CPU time that a small import may use")
    disk_reserve: Mebibytes = _setting("256", "MiB of the disk reserve, which is released on a full disk; 0 for none")
    backup_recipients: BackupKeys = _setting("", "public keys of age that open the data of backups, with commas")
    backup_key_recipients: BackupKeys = _setting("", "age keys of two administrators or more, who open the keyring")
    backup_folder: HomePath | None = _setting(None, "the folder of backups that `doctor` and `text erase` look at")
    backup_days: Number = _setting("2", "days after the newest backup until `doctor` and `status` warn")
    backup_keep_days: Number = _setting("90", "days after which a backup must be removed")
    engine: Literal["builtin", "vllm"] = _setting("builtin", "the inference engine: `builtin` or `vllm`")
    prompt_cache: Mebibytes = _setting("256", "MiB of each builtin engine's prompt cache; 0 for none")
    vllm_packages: HomePath | None = _setting(None, "the folder where vLLM and its libraries are installed")
    harness_packages: HomePath | None = _setting(None, "the folder where lm-eval and evaluate are installed")
    runs_on: Literal["local", "slurm"] = _setting("local", "where runs ordered without --on train: `local` or `slurm`")
    slurm_folder: NodePath | None = _setting(None, "the folder that every node of the cluster sees under this path")
    slurm_partition: SlurmWord | None = _setting(None, "the partition of Slurm jobs; Slurm's default unless set")
    slurm_account: SlurmWord | None = _setting(None, "the Slurm account for people whom policy gives none")
    slurm_time_limit: SlurmWord | None = _setting(None, "a job's time limit, such as 1-00:00:00")
    slurm_cpus: Number = _setting("1", "the CPUs that a job asks for")
    slurm_memory: SlurmWord | None = _setting(None, "the memory that a job asks for, such as 32G")
    slurm_gres: SlurmWord | None = _setting(None, "the generic resources that a job asks for, such as gpu:1")
    slurm_python: NodePath | None = _setting(None, "the nodes' Python that has the appliance installed")
    slurm_scratch: NodePath = _setting(
        "/var/tmp",  # noqa: S108 on a node, where a job makes a private folder in it
        "the nodes' folder for what a job reads and writes",
    )
    slurm_warning: Number = _setting("120", "seconds before the time limit to warn a job")
    slurm_patience: Number = _setting("15", "minutes to wait for slurmctld before a run fails")
    slurm_commands: NodePath = _setting("/usr/bin", "the folder of Slurm's commands, such as sbatch")
    limits: Annotated[dict[str, LimitSettings], BeforeValidator(_group_by_unit), AfterValidator(_add_common)] = Field(
        default_factory=dict
    )
    """The limits by unit, and those of all other units under ""."""

    @property
    def database_file(self) -> Path | None:
        """Return the ledger's SQLite file; None for a database server."""
        url = self.database_url.get_secret_value()
        return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None

    @property
    def certificates(self) -> dict[Path, bool]:
        """Return the certificate files of the listeners: the service's own, and True for those of clients' CAs."""
        files = {self.certificate: False, self.client_ca: True, self.people_client_ca: True}
        return {path: is_ca for path, is_ca in files.items() if path is not None}

    @property
    def snapshot(self) -> Path:
        """Return the file of the snapshot of the ledger's state."""
        return self.home.resolve() / "state.snapshot"

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        if len(self.roles) == len(ROLES):
            return self
        if self.database_url.get_secret_value().startswith("sqlite:"):
            expected = f"{', '.join(ROLES)}, since one process serves a ledger on SQLite"
            raise ValueError("roles", f"expected {expected}; several processes need PostgreSQL (database_url)")
        if not self.process:
            raise ValueError("roles", "expected a name for this process too (process), since it is one of several")
        return self

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        given = [name for name in ("certificate", "certificate_key", "client_ca") if getattr(self, name) is not None]
        if given and given[:2] != ["certificate", "certificate_key"]:
            raise ValueError(given[0], "expected certificate and certificate_key, got one without the other")
        if self.people_client_ca is not None and self.people is not None and self.certificate is None:
            raise ValueError("people_client_ca", "expected certificate and certificate_key beside it, got neither")
        return self

    @model_validator(mode="after")
    def _check_console(self) -> Self:
        """Check that browsers accept the console's address.

        WebAuthn accepts no IP address as a host. Without TLS, browsers must therefore use localhost; with TLS, the
        host's name. Behind a proxy that terminates TLS, browsers use https although the listener has no certificate.
        """
        if self.console is None:
            return self
        if self.console_url is None:
            scheme = "http" if self.certificate is None else "https"
            example = f"{scheme}://appliance.example:{self.console[1]}"
            raise ValueError("console", f"expected console_url beside it, such as {example}, got none")
        found = _URL.fullmatch(self.console_url)
        if found is None or (found[1] == "http" and (self.certificate is not None or not is_loopback(found[2]))):
            expected = "https://NAME:PORT in lower case without a path, or http://localhost:PORT without TLS"
            raise ValueError("console_url", f"expected {expected}, got {self.console_url!r}")
        return self

    @model_validator(mode="after")
    def _check_networks(self) -> Self:
        """Check that tokens, prompts and names of people cross a network by TLS only, or that plaintext is accepted."""
        if self.operations is not None and self.operations_token is None:
            raise ValueError("operations", "expected operations_token too, because the metrics need a token, got none")
        for name in ("listen", "people", "console", "operations", "notification_smtp"):
            address = getattr(self, name)
            has_tls = self.certificate is not None and name != "notification_smtp"
            if address is None or has_tls or self.plaintext is not None or is_loopback(address[0]):
                continue
            way = "" if name == "notification_smtp" else "certificate and certificate_key, or "
            expected = f'loopback, or {way}plaintext = "accepted"'
            raise ValueError(name, f"expected {expected}, got {address[0]}, which is on a network, without TLS")
        return self

    @model_validator(mode="after")
    def _check_databases(self) -> Self:
        """Check that the ledger crosses a network by TLS to a verified server only, or that plaintext is accepted."""
        for name in ("database_url", "migration_url"):
            if self.plaintext is None and not is_verified_database(getattr(self, name).get_secret_value()):
                expected = 'a server on loopback, sslmode=verify-full in the URL, or plaintext = "accepted"'
                raise ValueError(name, f"expected {expected}, got a server on a network that is not verified")
        return self

    @model_validator(mode="after")
    def _check_companions(self) -> Self:
        """Check that a setting that needs another one has it."""
        for name, is_used, needed in (
            ("notification_smtp", self.notification_smtp is not None, "notification_from"),
            ("notification_smtp", self.notification_smtp is not None, "notification_to"),
            ("engine", self.engine == "vllm", "vllm_packages"),
            ("runs_on", self.runs_on == "slurm", "slurm_folder"),
        ):
            if is_used and getattr(self, needed) is None:
                raise ValueError(name, f"expected {needed} beside it, got none")
        return self


VARIABLES = {name: f"{PREFIX}{name.upper()}" for name in Settings.model_fields if name not in ("home", "limits")}
"""Environment variables by setting, for the keys of the file."""


class Sources(NamedTuple):
    """The sources of the settings, strongest first."""

    given: InitSettingsSource
    environment: EnvSettingsSource
    file: TomlConfigSettingsSource


class _TomlFile(TomlConfigSettingsSource):
    """The settings of a file."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        try:
            data = file_path.read_bytes()
        except OSError as error:
            raise BadInput(f"settings, {file_path}: expected a readable file, got {error.strerror}") from None
        return parse_toml(data, f"settings, {file_path}")


def open_sources(home: Path | None, environment: Environment, file: Path | None) -> Sources:
    """Return the sources, each with its values. `file` replaces the home's own.

    Raises: BadInput for an unknown variable, and for a file that cannot be read or names the home.
    """
    folder = find_folder(home, environment).home
    variables = select_variables(environment)
    from_environment = EnvSettingsSource(Settings)
    from_environment.env_vars = {name.lower(): value for name, value in variables.items() if value}
    path = file or folder / FILE
    from_file = _TomlFile(Settings, path)
    if "home" in from_file.toml_data:
        raise BadInput(f"settings, {path}, key 'home': expected it in APPLIANCE_HOME or as the option --home")
    return Sources(InitSettingsSource(Settings, {"home": folder}), from_environment, from_file)


def select_variables(environment: Environment = None) -> dict[str, str]:
    """Return the variables of an environment that are settings, except the home.

    Raises: BadInput for a variable that begins as those of settings and is unknown.
    """
    env = os.environ if environment is None else environment
    known = (*VARIABLES.values(), *COMMAND_VARIABLES, *SIGNER_VARIABLES, HOME_VARIABLE)
    refuse(
        "settings",
        [
            f"settings, variable {name}: {_suggest(name, known) or 'expected the name of a setting'}"
            for name in sorted(env)
            if name.startswith(PREFIX) and name not in known
        ],
    )
    return {name: env[name] for name in VARIABLES.values() if name in env}


def load_settings(home: Path | None = None, environment: Environment = None, file: Path | None = None) -> Settings:
    """Return the settings. The environment overrides the file, and the file overrides the defaults.

    `file` replaces the home's own. Listeners of roles that this process lacks are off. Without a console there is no
    `console_url`.

    Raises: BadInput that names unknown variables, unknown keys and values that do not fit.
    """
    sources = open_sources(home, environment, file)
    try:
        settings = Settings(_build_sources=(sources, {}))
    except ValidationError as error:
        problems = list(_describe_problems(error, sources))
    else:
        off = [name for role, names in _LISTENERS.items() if role not in settings.roles for name in names]
        off += ["console_url"] if settings.console is None or "console" in off else []
        return settings.model_copy(update=dict.fromkeys(off))
    refuse("settings", problems)
    raise AssertionError("unreachable: invalid settings have a problem")


def _describe_problems(error: ValidationError, sources: Sources) -> Iterator[str]:
    """Yield the first problems and the number of the others.

    Each has its source, what was expected and the value. Values of secret settings are left out.
    """
    items = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    where = partial(_where, sources.environment().keys(), str(sources.file.toml_file_path))
    for item in items[:_MOST_DESCRIBED]:
        names = [str(part) for part in item["loc"]]
        if item["type"] == "extra_forbidden":
            known = (*VARIABLES, "limits") if len(names) == 1 else (*LimitSettings.model_fields,)
            words = _suggest(names[-1], known) or f"expected one of {', '.join(known)}"
            yield f"{where(names[:-1])}, key {names[-1]!r}: {words}"
        elif not names:  # a combination: the check names one of its settings
            name, words = item["ctx"]["error"].args
            yield f"{where([name])}: {words}"
        else:
            is_secret = Settings.model_fields[names[0]].annotation is SecretStr
            got = "another value" if is_secret else f"{item['input']!r:.80}"
            if _PRIVATE_KEY in got.upper():
                got = "a private key, which belongs on no host of the appliance"
            yield f"{where(names)}: {_describe_expected(item)}, got {got}"
    if (more := len(items) - _MOST_DESCRIBED) > 0:
        yield f"{more} more problems"


def _where(variables: Collection[str], file: str, names: list[str]) -> str:
    """Return the place of a value: its variable, or its file, table and key."""
    if names and names[0] in variables:
        return f"settings, {VARIABLES[names[0]]}"
    if names[0:1] == ["limits"]:
        names = [".".join(name for name in names[:2] if name), *names[2:]]
    return ", ".join(["settings", file, *names])


def _describe_expected(item: Any) -> str:
    """Return the expected value in words. Checks of this module state it themselves."""
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    words = item["msg"].removeprefix("Input should be ").partition(", unable")[0]
    words = words.replace("a valid integer", "a whole number").replace("a valid string", "text")
    return f"expected {'a whole number ' if ' than ' in words else ''}{words}"


def _suggest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"expected a known name; did you mean {near[0]!r}?" if near else ""
