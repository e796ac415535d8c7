"""Checks of everything that a service needs, from the machine to the certificates, for `appliance doctor`."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from appliance.api.operations import Check
from appliance.domain.core.policy import Parameters
from appliance.domain.core.state import State
from appliance.domain.governance.identities import list_unbound_people
from appliance.domain.governance.policies import list_policy_signers, refuse_too_few_signers
from appliance.domain.queries.alarms import RULES, find_alarms
from appliance.domain.queries.measures import BackupAges, Measures
from appliance.errors import ApplianceError, NotFound, Unavailable
from appliance.formats.core.text import show_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import parse_trust
from appliance.sandbox import kernel
from appliance.sandbox.description import PACKAGE, detect_layers
from appliance.sandbox.local import OFFLINE
from appliance.store.database.engine import using_engine
from appliance.store.database.processes import list_members
from appliance.store.files import disk
from appliance.store.files.backups import BackupFolder
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, Keyring
from appliance.store.ledger.checks import summarise_database
from appliance.store.ledger.keys import ServiceKeys
from appliance.store.ledger.pending import SigningRecord
from appliance.workflows.backups.listing import measure as measure_backups
from appliance.workflows.backups.listing import read_log_keys
from appliance.workflows.queries.measures import measure_certificates, measure_disk, measure_state
from appliance.workflows.runs.planning import host_memory
from appliance.workflows.serving.serve import DIGEST_KEY

Level = Literal["ok", "warn", "fail"]
"""Results of a check."""


def make_finding(
    check: str, holds: bool, found: str, expected: str, action: str, *, level_if_not: Level = "fail"
) -> Check:
    """Return a finding with the level ok and no action if `holds`, otherwise with the level `level_if_not` and the
    action.
    """
    return Check(check, "ok" if holds else level_if_not, found, expected, "" if holds else action)


def together(check: str, found: str, expected: str, findings: Iterable[Check]) -> Iterator[Check]:
    """Yield the findings that are not ok, or a single ok if there are none."""
    bad = [finding for finding in findings if finding.level != "ok"]
    yield from bad or [Check(check, "ok", found, expected)]


class RemoteKeys(ServiceKeys, SigningRecord, Protocol):
    """The keys of a signer, and its record."""


@dataclass(frozen=True)
class Installation:
    """The files and listeners that the settings name.

    `private`: files that only the service's account may read. `settings`: the file that only this account may write.
    `certificates`: PEM files, and True for those of CAs. `tls_error`: the reason why a service cannot use them.
    `listeners`: (description, host, port). `pid`: of the running service.
    """

    home: Path
    keys: Path
    socket: Path
    database_url: str
    private: tuple[Path, ...]
    certificates: Mapping[Path, bool]
    listeners: tuple[tuple[str, str, int], ...]
    pid: int | None
    settings: Path | None = None
    tls_error: str | None = None
    backups: BackupAges | None = None
    signer: Callable[[str], RemoteKeys] | None = None
    """Function that opens the keys of a log in the signer, if it has them."""
    has_socket_group: bool = False
    """True if a group of the machine has access to the socket's folder."""
    missing: tuple[tuple[str, str], ...] = ()
    """Settings that name something which this machine lacks, each with the text that says so."""


def check_home(installation: Installation) -> Iterator[Check]:
    """Yield the findings on the home folder, its owner, and the permissions in it."""
    yield make_finding(
        "home",
        installation.home.is_dir(),
        str(installation.home) if installation.home.is_dir() else f"nothing at {installation.home}",
        "the appliance's data folder",
        "make an appliance with: appliance init; or name another folder: --home",
        level_if_not="warn",
    )
    if not installation.home.is_dir():
        return
    owner = installation.home.stat().st_uid
    yield make_finding(
        "account",
        owner == os.geteuid(),
        f"user id {os.geteuid()}, and the home is that of {owner}",
        "the account that owns the home",
        "run doctor as that account: it did not check the keys and the database",
        level_if_not="warn",
    )
    yield from together(
        "permissions", "no other account may read or change them", "0700 folders, 0600 files", _rights(installation)
    )


def _rights(installation: Installation) -> Iterator[Check]:
    private = (installation.keys, *installation.private, *sorted(installation.keys.glob("*")))
    written = () if installation.settings is None else (installation.settings,)
    masks = dict.fromkeys(private, 0o077) | dict.fromkeys(written, 0o022)
    masks |= dict.fromkeys(
        (installation.home, installation.socket.parent), 0o067 if installation.has_socket_group else 0o077
    )
    masks[installation.socket] = 0o017 if installation.has_socket_group else 0o077
    for path, mask in masks.items():
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Check(
                "permissions", "fail", f"{path}: {error.strerror}", "to read its permissions", "look at its folder"
            )
            continue
        mode, owner = stat.S_IMODE(found.st_mode), found.st_uid
        if mode & mask or owner not in (0, installation.home.stat().st_uid):
            yield Check(
                "permissions",
                "fail",
                f"{path}: mode {mode:04o} of user id {owner}",
                "no rights for group and others (for the settings: none to write), and the home's owner",
                f"chmod go= {path}, and give it to the home's owner; ask who could have read it",
            )


def check_settings(installation: Installation) -> Iterator[Check]:
    """Yield a finding for each setting that names something which this machine lacks, or a single ok."""
    action = "correct the setting, or make what it names: docs/reference/configuration.md"
    expected = "settings that name what this machine has"
    missing = installation.missing
    findings = (Check("settings", "fail", f"{name}: {problem}", expected, action) for name, problem in missing)
    yield from together(
        "settings",
        "groups, programs, files and folders that they name are there, as far as this account can look them up",
        expected,
        findings,
    )


def check_key_files(installation: Installation) -> Iterator[Check]:
    """Yield a finding for each key that cannot be opened, or a single ok. The findings do not identify the keys."""
    keyring = Keyring(installation.keys)
    opened: dict[str, Callable[[], object]] = {}
    if installation.signer is None:
        opened["the log's"] = lambda: keyring.open_signer(LOG_KEY)
        opened["the adapters'"] = lambda: keyring.open_signer(ADAPTER_KEY)
    opened["the requests'"] = lambda: keyring.read_secret(DIGEST_KEY)
    yield from together("keys", ", ".join(opened), "keys that open", _find_unopenable(opened))


def _find_unopenable(opened: Mapping[str, Callable[[], object]]) -> Iterator[Check]:
    for name, open_key in opened.items():
        try:
            open_key()
        except ApplianceError as error:
            action = "put the file back from your copy of the home; without it no service starts"
            if name == "the log's":
                action += ", except where the log has rotated to a newer key"
            yield Check("keys", "fail", f"{name}: {error.message}", "a key that opens", action)


def check_signer(installation: Installation, size: int | None) -> Iterator[Check]:
    """Yield the findings on the signer, which is asked once, or a single ok; nothing without a signer.

    `size`: the log's entries, read before; None if they cannot be read.
    """
    if installation.signer is None:
        return
    found = "it has the log's key and the adapters'"
    yield from together("signer", found, "one that answers", _check_signer(installation, installation.signer, size))


def _check_signer(installation: Installation, opened: Callable[[str], RemoteKeys], size: int | None) -> Iterator[Check]:
    """Yield a finding if the signer does not answer, has no key or has signed fewer entries than the log has.

    Yield one more if its keys are in the keyring as well.
    """
    action = "docs/operations/signer.md says what to do; without it nothing is appended"
    try:
        trust = parse_trust((installation.home / "trust.json").read_bytes())
        with closing(opened(trust.origin)) as keys:
            if not keys.list_log_keys():
                raise NotFound("signer: expected the log's key, got none")
            last = keys.last_signed(trust.origin)
        signed = 0 if last is None else last.size
        if size is not None and signed < size:
            yield Check(
                "signer, record",
                "fail",
                f"it has signed {signed:,} entries, the log has {size:,}",
                "a signer that has signed every entry",
                "put the newer folder of the signer back: docs/operations/signer.md; until then nothing is appended",
            )
    except (ApplianceError, OSError) as error:
        yield Check("signer", "fail", str(error), "one that answers and has the log's key", action)
    if left := Keyring(installation.keys).list_keys():
        yield Check(
            "signer",
            "warn",
            f"{', '.join(left)} in {installation.keys} as well",
            "the signing keys in the signer alone",
            "appliance signer adopt moves them; until then a service that is taken over can sign by itself",
        )


def check_database(installation: Installation, now: datetime) -> tuple[list[Check], Parameters | None]:
    """Return the findings on the database, and the parameters of the valid policy if they can be read."""
    try:
        with using_engine(installation.database_url) as engine:
            seen, members = summarise_database(engine), list_members(engine)
    except ApplianceError as error:
        expected = "tables, triggers and rights as migrations make them"
        action = "docs/operations/service.md (When it does not start) says what to do"
        if isinstance(error, Unavailable):
            expected = "a database that answers"
            action = "start its server, or correct the settings database_url and migration_url"
        finding = Check("database", "fail", error.message[:600], expected, action)
        return [finding, *check_signer(installation, None)], None
    findings = [
        make_finding(
            "database",
            seen.size > 0,
            f"{engine.dialect.name}, {seen.size:,} entries; tables, triggers and rights as the migrations make them",
            "a log with its first entry",
            "make an appliance with: appliance init",
        ),
        make_finding(
            "database role",
            not seen.powers,
            seen.role + (f", which is {', '.join(seen.powers)}" if seen.powers else ""),
            "a role that can only add entries",
            "give the service the application's login, and the owner's to migration_url (docs/operations/service.md)",
            level_if_not="warn",
        ),
    ]
    findings += [
        Check(
            "process",
            "ok",
            f"{member.name} ({', '.join(member.about.roles)}), process {member.about.pid} on {member.about.host}, "
            f"epoch {member.epoch}, build {member.about.version}",
            "processes with a name each, whose builds have one compatibility number",
        )
        for member in members
        if member.name
    ]
    findings += check_signer(installation, seen.size)
    if seen.state is None:
        return findings, None
    findings += _check_state(seen.state, encode_time(now))
    return findings, seen.state.parameters


def _check_state(state: State, now: str) -> Iterator[Check]:
    """Yield the findings on the clock, the witnesses, and the approvals and keys that end."""
    measures = measure_state(state, Measures(now=now))
    ages = ", ".join(f"{one.name} {one.age_s:,} s ago" for one in measures.witnesses if one.age_s is not None)
    yield from check_alarms("clock", f"{now}, {measures.entry_age_s:,} s after the last entry", measures)
    yield from check_alarms("witnesses", ages or "policy names none", measures)
    yield from check_alarms("approvals", "none of an active release ends soon", measures)
    yield from check_alarms("administrators", "enough can sign", measures)
    yield from check_alarms("keys that end", "none of a person or unit ends soon", measures)
    yield from check_identities(state, now)


def check_identities(state: State, now: str) -> Iterator[Check]:
    """Yield the findings on people's identities, if policy requires some, and on who could change such a policy."""
    provider = state.parameters.identity_provider
    if provider is None:
        return
    unbound = list_unbound_people(state, provider)
    yield make_finding(
        "identities",
        not unbound,
        f"without a subject of {provider.issuer}: {', '.join(unbound)}" if unbound else "each person has a subject",
        "a subject of each person",
        "have two administrators bind them: appliance identity bind",
        level_if_not="warn",
    )
    signers = list_policy_signers(state, state.parameters, now)
    yield make_finding(
        "identities, emergency",
        not refuse_too_few_signers(state, signers),
        f"administrators with key files: {', '.join(one.name for one in signers) or 'none'}",
        "enough administrators who can change the policy on this machine without the identity provider",
        "have administrators enrol key files (docs/guides/identity.md)",
    )


def check_alarms(check: str, found: str, measures: Measures) -> Iterator[Check]:
    """Yield the alarms of a check as findings, or `found` with the level ok if none is on."""
    rules = {rule.code: rule for rule in RULES if rule.check == check}
    alarms = [alarm for alarm in find_alarms(measures) if alarm.code in rules]
    for alarm in alarms:
        level: Level = "fail" if alarm.severity == "critical" else "warn"
        name = check if alarm.subject == check else f"{check}, {alarm.subject}"
        yield Check(name, level, alarm.text, rules[alarm.code].threshold, alarm.action)
    if not alarms:
        yield Check(check, "ok", found, "; ".join(rule.threshold for rule in rules.values()))


def check_backups(installation: Installation, now: str) -> Iterator[Check]:
    """Yield the findings on the ages of the backups in the folder of the settings."""
    if installation.backups is None:
        yield Check("backups", "ok", "the setting backup_folder names no folder", "a folder of backups")
        return
    try:
        keys = read_log_keys(installation.database_url)
        ages = measure_backups(BackupFolder(Path(installation.backups.folder)), keys, installation.backups, now)
    except (ApplianceError, OSError) as error:
        ages = installation.backups._replace(error=str(error))
    yield from check_alarms("backups", f"the newest is of {ages.newest}", Measures(now=now, backups=ages))


def check_certificates(files: Mapping[Path, bool], now: datetime, tls_error: str | None = None) -> Iterator[Check]:
    """Yield the findings on the certificates and their expiry."""
    if tls_error is not None:
        yield Check("certificates", "fail", tls_error, "a certificate and its key", "correct the settings or the files")
    if not files:
        yield Check("certificates", "ok", "none is configured", "those of the settings")
    for path, is_ca in files.items():
        try:
            certificates = measure_certificates({path: is_ca})
        except ApplianceError as error:
            action = "have your CA issue a new one; it is read at the next start"
            yield Check("certificates", "fail", error.message, "a PEM file", action)
            continue
        found = f"{path.name} ends {certificates[0].until}"
        yield from check_alarms("certificates", found, Measures(now=encode_time(now), certificates=certificates))


def check_listeners(installation: Installation) -> Iterator[Check]:
    """Yield a finding for each listener. It must respond if a service runs, and must be free otherwise."""
    running = installation.pid is not None
    listeners: list[tuple[str, str, bool]] = []
    if running:
        listeners.append(
            ("people's socket", str(installation.socket), _answers(socket.AF_UNIX, str(installation.socket)))
        )
    for what, host, port in installation.listeners:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        holds = _answers(family, (host, port)) if running else _is_free(family, (host, port))
        listeners.append((what, f"{host}:{port}", holds))
    words = ("does not answer", "answers") if running else ("is taken", "is free")
    for what, address, holds in listeners:
        yield make_finding(
            what,
            holds,
            f"{address} {words[holds]}",
            "an answer" if running else "a free port",
            "see the service's log, and `appliance status`"
            if running
            else "end the program that listens there, or set another port",
        )
    if not listeners:
        yield Check("listeners", "ok", "none is configured besides the people's socket", "those of the settings")


def _answers(family: int, address: object) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(address)  # type: ignore[arg-type]
        except OSError:
            return False
    return True


def _is_free(family: int, address: tuple[str, int]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


LEAST_ABI = 3
"""Oldest sufficient ABI of Landlock. Before it, a process could truncate a file that it could not write."""
LEAST_BYTES = 2 << 30
"""Bytes of memory that a worker with a small base takes."""
_KERNEL_WORDS = (
    "a Linux kernel of 6.2 or later with user namespaces, Landlock and seccomp; see docs/adr/0002-sandbox.md"
)


def check_machine(folder: Path, accepted_missing: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Check]:
    """Yield the findings on the machine. `folder`: the present or future data folder."""
    yield from _layers(accepted_missing)
    yield _landlock(accepted_missing)
    yield _memory()
    yield from _disk(folder)
    yield _encryption(folder)
    yield _compiled()
    yield _offline(environment)


def _layers(accepted: tuple[str, ...]) -> Iterator[Check]:
    try:
        layers = detect_layers()
    except (ApplianceError, OSError) as error:
        yield Check("kernel layers", "fail", str(error), "a sandbox around a process", f"use {_KERNEL_WORDS}")
        return
    missing = sorted(name for name, is_built in layers.items() if not is_built)
    for name in missing:
        yield Check(
            f"kernel layer {name}",
            "warn" if name in accepted else "fail",
            "it cannot be built here" + (", which policy accepts" if name in accepted else ""),
            "this layer around each worker",
            f"use {_KERNEL_WORDS}, or have the policy set name it in accepted_missing_layers",
        )
    if not missing:
        yield Check(
            "kernel layers", "ok", f"all {len(layers)} can be built: {', '.join(sorted(layers))}", "all of them"
        )


def _landlock(accepted: tuple[str, ...]) -> Check:
    try:
        version = kernel.abi()
    except OSError:
        version = 0
    return make_finding(
        "Landlock",
        version >= LEAST_ABI,
        f"ABI {version}" if version else "none",
        f"ABI {LEAST_ABI} or newer",
        f"use {_KERNEL_WORDS}",
        level_if_not="warn" if version or "landlock" in accepted else "fail",
    )


def _memory() -> Check:
    whole, free = host_memory(now=False), host_memory(now=True)
    return make_finding(
        "memory",
        free >= LEAST_BYTES,
        f"{show_bytes(free)} available of {show_bytes(whole)}",
        f"{show_bytes(LEAST_BYTES)} available at least",
        "end other programs, or give the machine or its control group more; `appliance run plan` says what a run takes",
        level_if_not="warn",
    )


def _disk(folder: Path) -> Iterator[Check]:
    """Yield the finding on the disk of the folder, or of its nearest existing parent."""
    space = measure_disk(folder)
    found = f"{show_bytes(space.free)} free at {space.folder}"
    yield from check_alarms("disk", found, Measures(now=encode_time(datetime.now(UTC)), disk=space))


def _encryption(folder: Path) -> Check:
    """Return the finding on the encryption of the disk of the folder, or of its nearest existing parent."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    encrypted = disk.is_encrypted(place)
    without = "no block device to look at" if encrypted is None else "no dm-crypt"
    return make_finding(
        "disk encryption",
        encrypted is True,
        f"dm-crypt below {place}" if encrypted else f"{without} below {place}",
        "dm-crypt below the data folder",
        "put the home on an encrypted disk (cryptsetup); if disk or storage encrypts by itself, keep proof of that",
        level_if_not="warn",
    )


def _compiled() -> Check:
    """Return the finding on the compiled kernel for adapters. Only its header is read, since loading it requires
    torch.
    """
    files = sorted((PACKAGE / "ml").glob("_kernels*.so"))
    fits = [path.name for path in files if _kind_of(path) == _kind_of(Path("/proc/self/exe"))]
    return make_finding(
        "compiled kernel",
        bool(fits),
        fits[0] if fits else f"{files[0].name}, for another processor" if files else "none",
        "the compiled appliance.ml._kernels for this processor",
        "install the appliance's wheel for this machine",
    )


def _kind_of(path: Path) -> tuple[bytes, bytes]:
    """Return an ELF file's class and byte order, and its processor (elf(5))."""
    with path.open("rb") as file:
        header = file.read(20)
    return header[:6], header[18:20]


def _offline(environment: Mapping[str, str]) -> Check:
    """Return the finding on the offline variables. Workers always have them; here they matter for libraries outside
    workers.
    """
    other = [name for name in OFFLINE if environment.get(name, "1") not in ("1", "ON", "YES", "TRUE")]
    unset = [name for name in OFFLINE if name not in environment]
    found = f"another value than 1: {', '.join(other)}" if other else "set here" if not unset else "not set here"
    return make_finding(
        "offline variables",
        not other,
        f"{found}; every worker gets them",
        f"{', '.join(OFFLINE)} = 1, or unset",
        "set them to 1, or unset them",
        level_if_not="warn",
    )


def run_checks(installation: Installation, environment: Mapping[str, str], now: datetime) -> Iterator[Check]:
    """Yield each finding once it is made, since the checks of the sandbox and the database take a moment."""
    runs = "none runs" if installation.pid is None else f"runs, process {installation.pid}"
    yield Check("service", "ok", runs, "one, or none")
    yield from check_settings(installation)
    parameters: Parameters | None = None
    yield from check_home(installation)
    is_owner = installation.home.is_dir() and installation.home.stat().st_uid == os.geteuid()
    if is_owner and (installation.home / "trust.json").exists():
        yield from check_key_files(installation)
        findings, parameters = check_database(installation, now)
        yield from findings
        yield from check_backups(installation, encode_time(now))
    elif is_owner:
        yield Check("ledger", "warn", "none yet", "an appliance", "make one with: appliance init")
    accepted = () if parameters is None else parameters.accepted_missing_layers
    yield from check_machine(installation.home, accepted, environment)
    yield from check_listeners(installation)
    yield from check_certificates(installation.certificates, now, installation.tls_error)
