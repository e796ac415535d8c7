"""Commands for administrators of the service: its checks, status, storage, settings, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads, shares
from appliance.cli.support.output import print_facts, print_json, print_line, print_table, say
from appliance.cli.support.progress import show_bytes
from appliance.errors import BadInput, NotAuthenticated, Unavailable

if TYPE_CHECKING:
    from appliance.config.explain import Explained
    from appliance.config.values import Settings

DEFAULT_STOP_S = 60


@command("doctor", example="appliance doctor\nappliance doctor --json")
@shares
@click.pass_obj
def doctor(caller: Caller) -> None:
    """Check everything that an appliance needs, and say what to do about each problem.

    Works with a running service, without one, and before `init`. Kernel, clock, disk, memory, rights of files, keys,
    database, listeners, certificates, witnesses. Ends with 7 if a finding is `fail`; a `warn` alone ends with 0.
    """
    from appliance import wiring

    try:
        settings = caller.settings
    except BadInput as error:
        _end([_unreadable(error)], caller.json)
        return
    _end([finding.value() for finding in wiring.doctor(settings)], caller.json)


def _unreadable(error: BadInput) -> dict[str, str]:
    return {
        "check": "settings",
        "level": "fail",
        "found": error.message,
        "expected": "settings that can be read",
        "action": "correct the setting; docs/reference/configuration.md has all of them",
    }


def _lines(finding: dict[str, str]) -> Iterator[tuple[str, object]]:
    """One, and two more where something is to be done."""
    yield f"{finding['level']:<4}  {finding['check']}", finding["found"]
    if finding["level"] != "ok":
        yield "      expected", finding["expected"]
        yield "      do", finding["action"]


def _end(found: list[dict[str, str]], as_json: bool) -> None:
    counts = {level: sum(finding["level"] == level for finding in found) for level in ("ok", "warn", "fail")}
    worst = next((level for level in ("fail", "warn") if counts[level]), "ok")
    if as_json:
        print_json({"verdict": worst, "findings": found})
    else:
        print_facts(line for finding in found for line in _lines(finding))
        say(f"{counts['ok']} in order, {counts['warn']} to look at, {counts['fail']} that keep it from working")
    if worst == "fail":
        failed = ", ".join(finding["check"] for finding in found if finding["level"] == "fail")
        raise Unavailable(f"appliance: expected every check to pass, got failures: {failed}", code="not-in-order")


@command("status", example="appliance status\nappliance status --as alice --key alice.key --json")
@reads
@click.pass_obj
def status(caller: Caller) -> None:
    """Show whether the service runs, what it does and what waits for whom, on one screen.

    Starts no service. Without a login or a key it shows only what needs no session: whether it runs, and its process.
    """
    from appliance.client.support.door import is_answering
    from appliance.client.support.stopping import holder_of

    settings = caller.settings
    pid = holder_of(caller.place)
    if pid is None or not is_answering(settings.socket):
        doing = "not running" if pid is None else "starting or ending"
        print_json({"service": {"state": doing, "pid": pid}}) if caller.json else print_facts([("service", doing)])
        start = "appliance serve" if _is_made(settings) else "appliance init"
        say(f"next: appliance doctor, {start}" if pid is None else f"process {pid} holds {settings.lock}")
        return
    try:
        told = None if caller.name is None and caller.profile is None else caller.reading().get("/v1/status")
        lacking = "With a login, or --as NAME and --key FILE: log, witnesses, jobs, and pending decisions."
    except NotAuthenticated as error:
        if caller.name is not None:
            raise
        told, lacking = None, f"As {caller.signer}, log, witnesses, jobs and decisions are not shown: {error.message}"
    if told is None:
        shown = {"state": "running", "pid": pid, "version": caller.claimed.version}
        print_json({"service": shown}) if caller.json else print_facts(shown.items())
        say(lacking)
        return
    told["service"]["state"] = "running"
    print_json(told) if caller.json else print_facts(_facts(told))


def _is_made(settings: Settings) -> bool:
    """Whether `init` made an appliance there; one that this account may not look into counts."""
    try:
        settings.trust.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _facts(told: dict[str, Any]) -> Iterator[tuple[str, object]]:
    service, log, engine = told["service"], told["log"], told["engine"]
    ready = "" if service["ready"] else ", NOT READY"
    yield "service", f"running since {service['since']}, {service['version']}, process {service['pid']}{ready}"
    for warning in service["warnings"]:
        yield "warning", warning
    yield "log", f"{log['origin']}, {log['size']:,} entries, checkpoint over {log['checkpoint']:,}; {told['database']}"
    yield "last entry", log["last_entry"]
    for one in told.get("processes", ()):
        this = ", this one" if one["this"] else ""
        roles, place = ", ".join(one["roles"]), f"process {one['pid']} on {one['host']}"
        yield "process", f"{one['name']} ({roles}), {place}, last contact {one['contact_s']} s ago{this}"
    for one in told["witnesses"]:
        age = "has cosigned nothing" if one["age_s"] is None else f"{one['age_s']:,} s ago, {one['size']:,} entries"
        yield "witness", f"{one['name']}: {age}{'' if one['counts'] else ' (does not count)'}"
    for status in ("running", "queued"):
        jobs = [job for job in told["jobs"] if job["status"] == status]
        yield status, "\n".join(map(_job, jobs)) or "nothing"
    yield (
        "engine",
        f"{engine['loaded']} of {engine['slots']} slots loaded, {engine['requests']} requests open, "
        f"{'1 worker' if engine['workers'] == 1 else str(engine['workers']) + ' workers'}; {engine['device']}",
    )
    if told["authorisations"]:
        yield "runs", "\n".join(map(_authorisation, told["authorisations"]))
    yield "orders", "\n".join(_order(one) for one in told["orders"]) or "none waits for a second administrator"
    yield "reviews", "\n".join(_review(one) for one in told["reviews"]) or "none waits for a reviewer"
    yield "releases", "\n".join(map(_release, told["releases"])) or "none waits for a release owner"


def _job(job: dict[str, Any]) -> str:
    return f"{job['kind']} {job['name']}" + (f", {job['progress']}" if job["progress"] else "")


def _authorisation(one: dict[str, Any]) -> str:
    who = ", ".join(one["could_authorise"]) or "nobody: enrol a reviewer"
    return f"{one['run']} ({one['tier']}), ordered by {one['ordered_by']}, waits to be authorised by one of: {who}"


def _order(one: dict[str, Any]) -> str:
    return f"{one['order'][:19]} {one['verb']} by {one['signer']}, until {one['expires_at']}"


def _review(one: dict[str, Any]) -> str:
    unit = f" for {one['unit']}" if one["unit"] else ""
    return f"{one['adapter']}: {one['approvals']} of {one['needed']} approvals{unit}"


def _release(one: dict[str, Any]) -> str:
    who = ", ".join(one["owners"]) or "nobody: enrol a release owner"
    return f"{one['adapter']} is approved for {one['unit']} and was never released; release owner: {who}"


@command("stop", example="appliance stop\nappliance stop --timeout 300")
@click.option(
    "--timeout",
    "wait_s",
    type=click.IntRange(1, 86_400),
    default=DEFAULT_STOP_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it has ended.",
)
@shares
@click.pass_obj
def stop(caller: Caller, wait_s: int) -> None:
    """Ask the running service to end, and wait until it has ended.

    Open requests get five seconds; a run that is cut off continues at the next start, from its last training
    checkpoint. Only the process that holds the lock of the data folder gets a signal.
    """
    from appliance.client.support.stopping import stop_service

    pid = stop_service(caller.place, wait_s, lambda doing: say(f"waiting for the service, which {doing}"))
    if caller.json:
        print_json({"stopped": pid})
    else:
        print_line("no service was running" if pid is None else f"stopped: process {pid}")


@command("storage", example="appliance storage --as alice --key alice.key")
@reads
@click.pass_obj
def storage(caller: Caller) -> None:
    """What uses the disk, in bytes: bases, datasets, adapters, training checkpoints by run, uploads, logs, database.

    A run's training checkpoints are kept while it is under way, while its adapter is neither released nor rejected,
    while a legal hold is on it, and then for the days that policy gives; until then it can be replayed.
    """
    told = caller.reading().get("/v1/storage")
    if caller.json:
        print_json(told)
        return
    print_table(
        ("kind", "count", "size"),
        [(name, len(kind["things"]), show_bytes(kind["bytes"])) for name, kind in told["kinds"].items()]
        + [("together", "", show_bytes(told["bytes"])), ("free", "", show_bytes(told["disk"]["free_bytes"]))],
    )
    print_line("")
    things = [(kind, thing) for kind, found in told["kinds"].items() for thing in found["things"] if thing["bytes"]]
    largest = sorted(things, key=lambda one: -int(one[1]["bytes"]))
    print_table(
        ("size", "kind", "name", "kept for", "until"),
        [
            (show_bytes(thing["bytes"]), kind, thing["name"], thing.get("kept_for"), thing.get("kept_until"))
            for kind, thing in largest
        ],
    )


@command("config", example="appliance config\nAPPLIANCE_LISTEN=off appliance config --json")
@click.option("--markdown", is_flag=True, help="Print docs/reference/configuration.md: every setting with its meaning.")
@shares
@click.pass_obj
def config(caller: Caller, markdown: bool) -> None:
    """Every setting: its value, where that comes from, its default and its meaning."""
    from appliance.config.explain import explain_settings, render_page

    if markdown:
        print_line(render_page().rstrip("\n"))
        return
    found = explain_settings(caller.home)
    if caller.json:
        print_json([one._asdict() for one in found])
        return
    print_facts(line for one in found for line in _explained(one))


def _explained(one: Explained) -> Iterator[tuple[str, object]]:
    yield one.name, one.value or "not set"
    yield "  from", one.source + (f" ({one.variable})" if one.source == "environment" else "")
    yield "  default", one.default or "not set"
    yield "  meaning", one.meaning
