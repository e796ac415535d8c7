"""Whether what lies on disk is in order: the home's files and rights, keys, database, clock, witnesses, certificates.

Works with a running service, without one, and before `init`. No key, token or password is printed.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.errors import ApplianceError
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.engine import open_engine
from appliance.store.database.processes import list_members
from appliance.store.files.certificates import read_end
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, Keyring
from appliance.store.ledger.glance import Glance, glance
from appliance.workflows.operations.findings import Finding, judge, together
from appliance.workflows.operations.status import seconds_between
from appliance.workflows.serving.serve import DIGEST_KEY

CERTIFICATE_DAYS = 30
"""So long before its end a certificate is warned of."""
LONG_PAUSE_DAYS = 31


@dataclass(frozen=True)
class Installation:
    """What the settings name. `private`: files that the service's account alone may read; `settings`: that it alone may
    write; `certificates`: PEM files, and `unfit`: why a service could not use them; `listeners`: (what, host, port);
    `pid`: of the service that runs."""

    home: Path
    keys: Path
    socket: Path
    database_url: str
    private: tuple[Path, ...]
    certificates: tuple[Path, ...]
    listeners: tuple[tuple[str, str, int], ...]
    pid: int | None
    settings: Path | None = None
    unfit: str | None = None
    passed: bool = False
    """By a group of the machine, on its way to the socket."""


def check_home(place: Installation) -> Iterator[Finding]:
    """The folder, who owns it, and the rights of all in it."""
    yield judge(
        "home",
        place.home.is_dir(),
        str(place.home) if place.home.is_dir() else f"nothing at {place.home}",
        "the appliance's data folder",
        "make an appliance with: appliance init; or name another folder: --home",
        otherwise="warn",
    )
    if not place.home.is_dir():
        return
    owner = place.home.stat().st_uid
    yield judge(
        "account",
        owner == os.geteuid(),
        f"user id {os.geteuid()}, and the home is that of {owner}",
        "the account that owns the home",
        "run it as that account; keys and database are not looked at now",
        otherwise="warn",
    )
    yield from together(
        "permissions", "no other account may read or change them", "0700 folders, 0600 files", _rights(place)
    )


def _rights(place: Installation) -> Iterator[Finding]:
    private = (place.keys, *place.private, *sorted(place.keys.glob("*")))
    written = () if place.settings is None else (place.settings,)
    masks = dict.fromkeys(private, 0o077) | dict.fromkeys(written, 0o022)
    masks |= dict.fromkeys((place.home, place.socket.parent), 0o067 if place.passed else 0o077)
    masks[place.socket] = 0o017 if place.passed else 0o077
    for path, mask in masks.items():
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Finding(
                "permissions", "fail", f"{path}: {error.strerror}", "to read its permissions", "look at its folder"
            )
            continue
        mode, owner = stat.S_IMODE(found.st_mode), found.st_uid
        if mode & mask or owner not in (0, place.home.stat().st_uid):
            yield Finding(
                "permissions",
                "fail",
                f"{path}: mode {mode:04o} of user id {owner}",
                "no rights for group and others (for the settings: none to write), and the home's owner",
                f"chmod go= {path}, and give it to the home's owner; ask who could have read it",
            )


def check_keys(keys: Path) -> Iterator[Finding]:
    """Each can be opened; which they are is not printed."""
    keyring = Keyring(keys)
    for name, look in (
        ("the log's", lambda: keyring.open_signer(LOG_KEY)),
        ("the adapters'", lambda: keyring.open_signer(ADAPTER_KEY)),
        ("the requests'", lambda: keyring.read_secret(DIGEST_KEY)),
    ):
        try:
            look()
        except ApplianceError as error:
            action = "put the file back from your copy of the home; without it no service starts"
            if name == "the log's":
                action += ", except where the log has rotated to a newer key"
            yield Finding("keys", "fail", f"{name}: {error.message}", "a key that opens", action)


def check_keys_together(keys: Path) -> Iterator[Finding]:
    yield from together("keys", "the log's, the adapters' and the requests'", "keys that open", check_keys(keys))


def check_database(place: Installation, now: datetime) -> tuple[list[Finding], Parameters | None]:
    """The findings, and the parameters of the policy in force where they can be read."""
    engine = open_engine(place.database_url)
    try:
        seen = glance(engine)
        members = list_members(engine)
    except ApplianceError as error:
        action = "docs/operations.md (When it does not start) says what to do"
        finding = Finding(
            "database", "fail", error.message[:600], "tables, triggers and rights as migrations make them", action
        )
        return [finding], None
    finally:
        engine.dispose()
    findings = [
        judge(
            "database",
            seen.size > 0,
            f"{engine.dialect.name}, {seen.size:,} entries; tables, triggers and rights as the migrations make them",
            "a log with its first entry",
            "make an appliance with: appliance init",
        ),
        judge(
            "database role",
            not seen.powers,
            seen.role + (f", which is {', '.join(seen.powers)}" if seen.powers else ""),
            "a role that can only add entries",
            "give the service the application's login, and the owner's to migration_url (docs/ARCHITECTURE.md)",
            otherwise="warn",
        ),
    ]
    findings += [
        Finding(
            "process",
            "ok",
            f"{member.name} ({', '.join(member.about.roles)}), process {member.about.pid} on {member.about.host}, "
            f"epoch {member.epoch}",
            "processes with a name each, of one build",
        )
        for member in members
        if member.name
    ]
    if seen.site is not None:
        findings += [_clock(seen, seen.site.parameters, now), *_witnesses(seen, seen.site.parameters, encode_time(now))]
    return findings, None if seen.site is None else seen.site.parameters


def _clock(seen: Glance, parameters: Parameters, now: datetime) -> Finding:
    last = seen.last_time or ""
    if add_seconds(encode_time(now), parameters.clock_skew_s) < last:
        expected, action = f"a time after the last entry's, {last}", "set the clock; nothing is appended until then"
        return Finding("clock", "fail", encode_time(now), expected, action)
    return judge(
        "clock",
        encode_time(now - timedelta(days=LONG_PAUSE_DAYS)) <= last,
        f"{encode_time(now)}, {seconds_between(last, encode_time(now)):,} s after the last entry",
        f"at most {LONG_PAUSE_DAYS} days after the last entry",
        "set the clock; or, where it is right, start once with: appliance serve --after-pause",
    )


def _witnesses(seen: Glance, parameters: Parameters, now: str) -> Iterator[Finding]:
    ages = {one.vkey: seconds_between(one.time, now) for one in seen.witnesses if one.vkey in parameters.witnesses}
    limit = parameters.witness_lifetime_s
    if not parameters.witnesses:
        yield Finding("witnesses", "ok", "policy names none", "those of policy")
        return
    for vkey in parameters.witnesses:
        age, name = ages.get(vkey), vkey.partition("+")[0]
        yield judge(
            f"witness {name}",
            age is not None and age <= limit,
            "it has cosigned nothing" if age is None else f"it cosigned {age:,} s ago",
            f"at most {limit:,} s ago",
            f"ask it for a cosignature: appliance witness request {name}",
            otherwise="warn",
        )
    fresh = sum(age <= limit for age in ages.values())
    yield judge(
        "witness quorum",
        fresh >= parameters.witness_quorum,
        f"{fresh} fresh cosignatures",
        f"{parameters.witness_quorum} or more",
        "carry a request to each witness; nothing is admitted until then",
    )


def check_certificates(paths: Sequence[Path], now: datetime, unfit: str | None = None) -> Iterator[Finding]:
    if unfit is not None:
        yield Finding("certificates", "fail", unfit, "a certificate and its key", "correct the settings or the files")
    if not paths:
        yield Finding("certificates", "ok", "none is configured", "those of the settings")
    for path in paths:
        action = "have your CA issue a new one; it is read at the next start"
        try:
            end = read_end(path)
        except ApplianceError as error:
            yield Finding("certificates", "fail", error.message, "a PEM file", action)
            continue
        found = f"{path.name} ends {encode_time(end)}"
        if end <= now:
            yield Finding("certificates", "fail", found, "one that has not ended", action)
        else:
            left = end - timedelta(days=CERTIFICATE_DAYS) > now
            expected = f"{CERTIFICATE_DAYS} days at least before its end"
            yield judge("certificates", left, found, expected, action, otherwise="warn")


def check_listeners(place: Installation) -> Iterator[Finding]:
    """A service that runs answers at each; without one each is free."""
    running = place.pid is not None
    doors: list[tuple[str, str, bool]] = []
    if running:
        doors.append(("people's socket", str(place.socket), _answers(socket.AF_UNIX, str(place.socket))))
    for what, host, port in place.listeners:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        holds = _answers(family, (host, port)) if running else _is_free(family, (host, port))
        doors.append((what, f"{host}:{port}", holds))
    words = ("does not answer", "answers") if running else ("is taken", "is free")
    for what, address, holds in doors:
        yield judge(
            what,
            holds,
            f"{address} {words[holds]}",
            "an answer" if running else "a free port",
            "see the service's log, and `appliance status`"
            if running
            else "end the program that listens there, or set another port",
        )
    if not doors:
        yield Finding("listeners", "ok", "none is configured besides the people's socket", "those of the settings")


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
