"""Commands for administrators of the service: checks, status, storage, settings, and stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, command, with_common_options, with_session_options
from appliance.cli.support.groups import config
from appliance.cli.support.output import print_facts, print_json, print_line, print_result, print_table, say
from appliance.errors import BadInput, NotAuthenticated, Unavailable
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.api.operations import (
        ActiveJob,
        Check,
        Status,
        UnauthorisedRun,
        UnreleasedAdapter,
        UnreviewedAdapter,
    )
    from appliance.api.people import WaitingOrder
    from appliance.config.description import ExplainedSetting
    from appliance.config.folder import ApplianceFolder

_MAX_SETTINGS_BYTES = 1 << 20
DEFAULT_STOP_S = 60
"""Default seconds to wait for the service to end."""


@command("doctor", example="appliance doctor\nappliance doctor --json")
@with_common_options
def doctor(caller: Caller) -> None:
    """Check everything that an appliance needs, and say what to do about each problem.

    Works with a running service, without one, and before `init`. Checks the kernel, clock, disk, memory, file
    permissions, keys, database, listeners, certificates and witnesses. The exit code is 7 if a finding is `fail`, and 0
    if there are only warnings.
    """
    from appliance import wiring

    try:
        settings = caller.settings
    except BadInput as error:
        _end([_unreadable(error)], caller.json)
        return
    _end(list(wiring.doctor(settings)), caller.json)


def _unreadable(error: BadInput) -> Check:
    from appliance.api.operations import Check

    action = "correct the setting; docs/reference/configuration.md has all of them"
    return Check("settings", "fail", error.message, "settings that can be read", action)


def _finding_lines(finding: Check) -> Iterator[tuple[str, object]]:
    """Yield a finding as one line, and two more lines if something has to be done."""
    yield f"{finding.level:<4}  {finding.check}", finding.found
    if finding.level != "ok":
        yield "      expected", finding.expected
        yield "      do", finding.action


def _end(findings: list[Check], as_json: bool) -> None:
    ok, warn, fail = (sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail"))
    worst = "fail" if fail else "warn" if warn else "ok"
    if as_json:
        print_json({"verdict": worst, "findings": findings})
    else:
        print_facts(line for finding in findings for line in _finding_lines(finding))
        say(f"{ok} in order, {warn} to look at, {fail} that keep it from working")
    if worst == "fail":
        failed = ", ".join(finding.check for finding in findings if finding.level == "fail")
        raise Unavailable(f"appliance: expected every check to pass, got failures: {failed}", code="not-in-order")


@command("status", example="appliance status\nappliance status --as alice --key alice.key --json")
@with_session_options
def status(caller: Caller) -> None:
    """Show whether the service runs, what it does, and which decisions are pending.

    Starts no service. Without a login or a key it shows only whether the service runs, and its process.
    """
    from appliance.api.operations import Status
    from appliance.client.support.connection import is_answering
    from appliance.client.support.service_process import holder_of

    folder = caller.folder
    pid = holder_of(caller.place)
    if pid is None or not is_answering(folder.socket):
        state_text = "not running" if pid is None else "starting or ending"
        has_appliance = _has_appliance(folder)
        home = f"{folder.home}{'' if has_appliance else ', without an appliance'}"
        value = {"service": {"state": state_text, "pid": pid, "home": str(folder.home)}}
        print_result(caller.json, value, [("service", state_text), ("data folder", home)])
        start = "appliance serve" if has_appliance else "appliance init"
        say(f"next: appliance doctor, {start}" if pid is None else f"process {pid} holds {folder.lock}")
        return
    try:
        answer = None if caller.name is None and caller.profile is None else caller.reading().get("/v1/status", Status)
        lacking = "With a login, or --as NAME and --key FILE: log, witnesses, jobs, and pending decisions."
    except NotAuthenticated as error:
        if caller.name is not None:
            raise
        answer, lacking = None, f"As {caller.signer}, log, witnesses, jobs and decisions are not shown: {error.message}"
    if answer is None:
        shown = {"state": "running", "pid": pid, "version": caller.about_without_session.version}
        print_result(caller.json, {"service": {**shown, "home": str(folder.home)}}, shown.items())
        say(lacking)
        return
    service = {**dict(answer.service), "state": "running", "home": str(folder.home)}
    print_result(caller.json, {**dict(answer), "service": service}, _facts(answer))


def _has_appliance(folder: ApplianceFolder) -> bool:
    """Return True if `init` made an appliance there, or this account cannot read the folder."""
    try:
        folder.trust.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _facts(answer: Status) -> Iterator[tuple[str, object]]:
    service, log = answer.service, answer.log
    ready = "" if service.ready else ", NOT READY"
    yield "service", f"running since {service.since}, {service.version}, process {service.pid}{ready}"
    for alarm in answer.alarms:
        yield alarm.severity, f"{alarm.code}: {alarm.text}\n{alarm.action}"
    yield (
        "log",
        f"{log.origin}, {log.size:,} entries, checkpoint over {log.checkpoint:,}; {answer.database}",
    )
    yield "last entry", log.last_entry
    for one in answer.processes:
        this = ", this one" if one.this else ""
        roles, place = ", ".join(one.roles), f"process {one.pid} on {one.host}"
        yield "process", f"{one.name} ({roles}), {place}, last contact {one.contact_s} s ago{this}"
    for witness in answer.witnesses:
        age = "has cosigned nothing" if witness.age_s is None else f"{witness.age_s:,} s ago, {witness.size:,} entries"
        yield "witness", f"{witness.name}: {age}{'' if witness.counts else ' (does not count)'}"
    yield from _list_work(answer)


def _list_work(answer: Status) -> Iterator[tuple[str, object]]:
    """Yield the lines on what runs, and on what waits for a person."""
    engine = answer.engine
    for status in ("running", "queued"):
        jobs = [job for job in answer.jobs if job.status == status]
        yield status, "\n".join(map(_job, jobs)) or "nothing"
    yield (
        "engine",
        f"{engine.loaded} of {engine.slots} slots loaded, {engine.requests} requests open, "
        f"{'1 worker' if engine.workers == 1 else str(engine.workers) + ' workers'}; {engine.device}",
    )
    if answer.authorisations:
        yield "runs", "\n".join(map(_authorisation, answer.authorisations))
    yield "orders", "\n".join(_order(one) for one in answer.orders) or "none waits for a second administrator"
    yield "reviews", "\n".join(_review(one) for one in answer.reviews) or "none waits for a reviewer"
    yield "releases", "\n".join(map(_release, answer.releases)) or "none waits for a release owner"
    yield "for you", "\n".join(f"{one.kind}: {one.text}" for one in answer.yours) or "nothing waits for you"


def _job(job: ActiveJob) -> str:
    return f"{job.kind} {job.name}" + (f", {job.progress}" if job.progress else "")


def _authorisation(one: UnauthorisedRun) -> str:
    who = ", ".join(one.authorisers) or "nobody: enrol a reviewer"
    return f"{one.run} ({one.tier}), ordered by {one.ordered_by}, waits to be authorised by one of: {who}"


def _order(one: WaitingOrder) -> str:
    return f"{one.order[:19]} {one.action} by {one.signer}, until {one.expires_at}"


def _review(one: UnreviewedAdapter) -> str:
    unit = f" for {one.unit}" if one.unit else ""
    return f"{one.adapter}: {one.approvals} of {one.needed} approvals{unit}"


def _release(one: UnreleasedAdapter) -> str:
    who = ", ".join(one.owners) or "nobody: enrol a release owner"
    return f"{one.adapter} is approved for {one.unit} and was never released; release owner: {who}"


@command("stop", example="appliance stop\nappliance stop --timeout 300")
@click.option(
    "--timeout",
    "wait_s",
    type=click.IntRange(1, 86_400),
    default=DEFAULT_STOP_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for its end.",
)
@with_common_options
def stop(caller: Caller, wait_s: int) -> None:
    """Stop the running service, and wait until it has ended.

    Open requests get five seconds. An interrupted run continues at the next start, from its last training checkpoint.
    Only the process that holds the lock of the data folder gets a signal.
    """
    from appliance.client.support.service_process import stop_service

    pid = stop_service(caller.place, wait_s, lambda doing: say(f"waiting for the service, which {doing}"))
    if caller.json:
        print_json({"stopped": pid})
    else:
        print_line("no service was running" if pid is None else f"stopped: process {pid}")


@command("storage", example="appliance storage --as alice --key alice.key")
@with_session_options
def storage(caller: Caller) -> None:
    """Show what uses the disk: bases, datasets, adapters, training checkpoints by run, uploads, logs, database.

    A run's training checkpoints are kept while it is running, while its adapter is neither released nor rejected, while
    a legal hold is on it, and then for the days that policy sets. Until then the run can be replayed.
    """
    from appliance.api.operations import Storage

    usage = caller.reading().get("/v1/storage", Storage)
    if caller.json:
        print_json(usage)
        return
    print_table(
        ("kind", "count", "size"),
        [(name, len(kind.items), show_bytes(kind.bytes)) for name, kind in usage.kinds.items()]
        + [("together", "", show_bytes(usage.bytes)), ("free", "", show_bytes(usage.disk.free_bytes))],
    )
    print_line("")
    items = [(kind, item) for kind, found in usage.kinds.items() for item in found.items if item.bytes]
    largest = sorted(items, key=lambda one: -one[1].bytes)
    print_table(
        ("size", "kind", "name", "kept for", "until"),
        [(show_bytes(item.bytes), kind, item.name, item.kept_for, item.kept_until) for kind, item in largest],
    )


@config.command("show", example="appliance config show\nAPPLIANCE_LISTEN=off appliance config show --json")
@click.option("--markdown", is_flag=True, help="Print docs/reference/configuration.md: every setting with its meaning.")
@with_common_options
def show_config(caller: Caller, markdown: bool) -> None:
    """Show every setting: its value, the source of the value, its default and its meaning."""
    from appliance.config.description import explain_settings, render_page

    if markdown:
        print_line(render_page().rstrip("\n"))
        return
    found = explain_settings(caller.home)
    lines = (line for one in found for line in _setting_lines(one))
    print_result(caller.json, [one._asdict() for one in found], lines)


@config.command("check", example="appliance config check gateway-1.toml\nappliance config check new.toml --home /srv/a")
@click.argument("file", metavar="FILE", type=PATH)
@with_common_options
def check_config(caller: Caller, file: Path) -> None:
    """Check FILE as the settings of a home, before it is copied to a host, and show what it sets.

    The environment of this command is left out. The exit code is 2 if a setting is wrong; every wrong one is named.
    Groups, programs, files and folders that this machine lacks are named, too, and the exit code stays 0, because they
    have to be on the host: `appliance doctor` checks them there.
    """
    from appliance.client.support.files import read_file
    from appliance.config.description import explain_settings, find_missing
    from appliance.config.settings import FILE, load_settings

    read_file(file, "settings", _MAX_SETTINGS_BYTES)
    given = [one for one in explain_settings(caller.home, {}, file) if one.source == FILE]
    missing = list(find_missing(load_settings(caller.home, {}, file)))
    say(*(f"not on this machine: {name}: {problem}" for name, problem in missing))
    if caller.json:
        print_json([one._asdict() for one in given])
        return
    print_facts((one.name, one.value or "not set") for one in given)
    lacking = f"; this machine lacks what these name: {', '.join(name for name, _ in missing)}" if missing else ""
    say(f"{file}: valid, with {len(given)} settings{lacking}")


def _setting_lines(one: ExplainedSetting) -> Iterator[tuple[str, object]]:
    yield one.name, one.value or "not set"
    yield "  from", one.source + (f" ({one.variable})" if one.source == "environment" else "")
    yield "  default", one.default or "not set"
    yield "  meaning", one.meaning
