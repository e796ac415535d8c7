"""Commands for the policy set, the rules version, and the clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_common_options, with_session_options, with_signing_options
from appliance.cli.support.groups import clock, policy, rules
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_result, print_table, say
from appliance.cli.support.signing import order_action, show_proposal, sign_and_submit
from appliance.errors import Conflict, Denied

if TYPE_CHECKING:
    from appliance.client.policies import ClockAnswer
    from appliance.client.support.connection import Connection


@policy.command("show", example="appliance policy show\nappliance policy show --cedar > policies.cedar")
@click.option("--cedar", is_flag=True, help="Print the Cedar policies alone.")
@with_session_options
def show(caller: Caller, cedar: bool) -> None:
    """Show the valid policy set: its digest, its parameters, its Cedar policies."""
    from appliance.client.policies import current_policy

    found = current_policy(caller.reading())
    if caller.json:
        print_json({"digest": found.digest, "policy": found.policy})
        return
    if not cedar:
        parameters = found.policy.parameters.model_dump(mode="json")
        listed = [(name.replace("_", " "), _shown(value)) for name, value in parameters.items()]
        print_facts([("policy set", found.policy.name), ("digest", found.digest), *listed])
        print_line("")
    print_line(found.policy.cedar.rstrip("\n"))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


@policy.command("export", example="appliance policy export default\nappliance policy adopt default")
@click.argument("folder", type=PATH)
@with_session_options
def export(caller: Caller, folder: Path) -> None:
    """Write the valid policy set to a new folder, to be edited and adopted again. The digest of its bytes is checked.

    Give the folder the set's name, because a set is named after its folder. Test cases are not part of an adopted set.
    """
    from appliance.client.policies import current_policy, write_policy

    found = current_policy(caller.reading())
    written = write_policy(folder, found)
    if caller.json:
        print_json({"digest": found.digest, "name": found.policy.name, "folder": str(folder), "folder_digest": written})
        return
    print_facts([("policy set", found.policy.name), ("digest", found.digest), ("folder", str(folder))])
    if written != found.digest:
        named = folder.resolve().name
        cause = "its name" if named != found.policy.name else "parameters that the set lacks and this build has"
        say(f"Adopted as it is, the folder would be another set, {written}: it differs in {cause}.")
    say(f"next: edit its files, compare them with: appliance policy diff {folder}, and adopt it")


@policy.command("adopt", example="appliance policy adopt policies/default")
@click.argument("folder", type=PATH)
@with_signing_options
def adopt(caller: Caller, folder: Path) -> None:
    """Order that a policy set becomes valid. FOLDER has parameters.json, policies.cedar and schema.cedarschema.

    Shows what would change. Needs two administrators.
    """
    from appliance.client.policies import list_changes, load_policy

    new = load_policy(folder)
    changes = list_changes(caller.reading(), new.policy)
    proposal = caller.propose("adopt-policy", {}, documents={"policy": new.data})
    receipt = sign_and_submit(caller, proposal, show_subject=lambda: say(*map(plain, changes)))
    facts = [("policy set", new.digest), ("entry", receipt.index), ("outcome", receipt.outcome)]
    print_result(caller.json, receipt, facts)
    if receipt.outcome == "pending":
        say(f"next: another administrator types: appliance order countersign {receipt.order[:19]}")


@policy.command("test", example="appliance policy test policies/default")
@click.argument("folder", type=PATH)
@with_session_options
def test(caller: Caller, folder: Path) -> None:
    """Run a set's test cases (tests.json) with the service's own policy engine. Fails if one does not pass."""
    from appliance.client.policies import run_cases

    results = run_cases(caller.reading(), folder)
    failed = [result for result in results if not result.passed]
    if caller.json:
        print_json({"results": results, "passed": len(results) - len(failed), "failed": len(failed)})
    else:
        print_table(
            ("case", "result", "expected", "got"),
            [(r.name, "passed" if r.passed else "FAILED", r.expected, r.got) for r in results],
        )
    say(f"{len(results) - len(failed)} of {len(results)} cases passed.")
    if failed:
        names = ", ".join(result.name for result in failed)
        raise Denied(
            f"{len(failed)} cases of the policy set {folder} did not pass: {names}. Correct the set or the cases."
        )


@policy.command("diff", example="appliance policy diff policies/strict-example")
@click.argument("folder", type=PATH)
@with_session_options
def diff(caller: Caller, folder: Path) -> None:
    """Compare a policy set with the valid one: parameters, Cedar policies and schema, as a unified diff."""
    from appliance.client.policies import current_policy, load_policy
    from appliance.domain.governance.policies import list_diff_lines

    old, new = current_policy(caller.reading()), load_policy(folder)
    changes = list_diff_lines(old.policy, new.policy)
    if caller.json:
        print_json({"current": old.digest, "other": new.digest, "diff": changes})
        return
    for line in changes:
        print_line(plain(line))
    say("No text differs." if not changes else f"Current policy: {old.digest}. Compared with: {new.digest}.")


@rules.command("show", example="appliance rules show")
@with_session_options
def show_rules(caller: Caller) -> None:
    """Show the valid rules version, the entry that set it, and the newest version that this build knows."""
    from appliance.client.policies import read_rules

    found = read_rules(caller.reading())
    facts = [("valid", found.version), ("since entry", found.entry), ("newest known", found.newest)]
    print_result(caller.json, found, facts)


@rules.command("raise", example="appliance rules raise 2")
@click.argument("version", type=int)
@with_signing_options
def raise_(caller: Caller, version: int) -> None:
    """Raise the rules version after an upgrade. Needs two administrators. It cannot be undone.

    Earlier entries are still checked by the version that was valid when they were recorded. An older build refuses
    the log from then on.
    """
    order_action(caller, "raise-rules", {"rules": version}, f"rules version {version} is valid")


@clock.command("show", example="appliance clock show")
@with_common_options
def show_clock(caller: Caller) -> None:
    """Show the last entry's time, the host's clock, and whether entries can be recorded. Needs no key."""
    from appliance.client.policies import read_clock

    found = read_clock(_connect_without_session(caller))
    waiting = [pending.digest for pending in found.waiting]
    value = {"last": found.last, "now": found.now, "behind": found.is_behind, "waiting": waiting}
    print_result(caller.json, value, _facts(found))


@clock.command("reset", example="appliance clock reset")
@with_signing_options
def reset(caller: Caller) -> None:
    """Set the log's time back to the host's clock, after you have corrected that. Needs two administrators.

    What had expired by the last entry's time stays expired. Earlier orders, sessions and tokens become invalid.
    """
    from appliance.domain.core.lookup import UnprovenValue

    found = _read_clock_behind(caller)
    order_action(
        caller,
        "reset-clock",
        {"last": UnprovenValue(found.last)},
        "the log's time is the host's",
        notes=_notes(caller, found),
        following="another administrator types: appliance clock countersign",
    )


@clock.command("countersign", example="appliance clock countersign")
@with_signing_options
def countersign(caller: Caller) -> None:
    """Countersign the other administrator's order to reset the clock, which then takes effect."""
    from appliance.client.policies import find_reset

    found = _read_clock_behind(caller)
    first = find_reset(found)
    show_proposal(first.proposal, f"The order of {first.proposal.order.signer}, entry {first.index} of the log:")
    values, done = {"order": first.digest}, "the log's time is the host's"
    order_action(caller, "countersign", values, done, notes=_notes(caller, found))


def _connect_without_session(caller: Caller) -> Connection:
    """Return the connection without a session, because none can be opened while nothing can be recorded.

    An embedded service is started if none responds.
    """
    _ = caller.about_without_session
    return caller.connection


def _read_clock_behind(caller: Caller) -> ClockAnswer:
    from appliance.client.policies import read_clock

    found = read_clock(_connect_without_session(caller))
    if not found.is_behind:
        raise Conflict(f"clock: expected one that is behind the last entry, {found.last}, got {found.now}")
    return found


def _facts(found: ClockAnswer) -> list[tuple[str, object]]:
    waiting = ", ".join(f"{p.digest[:19]} by {p.proposal.order.signer}" for p in found.waiting) or "none"
    recorded = "nothing, until the clock is set or reset" if found.is_behind else "yes"
    return [("last entry", found.last), ("host's clock", found.now), ("recorded", recorded), ("waiting", waiting)]


def _notes(caller: Caller, found: ClockAnswer) -> list[str]:
    notes = [
        f"  The log's last entry is dated {found.last}.",
        f"  The host's clock says          {found.now}. Compare it with a clock that you trust before you sign.",
    ]
    if not caller.anchor.is_proved:
        notes.append(
            f"  The log's key was rotated to {caller.anchor.log_key}. That is the service's own word: its proof needs "
            "a session, which cannot be opened while the clock is behind."
        )
    return notes
