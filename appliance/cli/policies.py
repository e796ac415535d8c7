"""The policy set: what is in force, what would change, whether its test cases pass, and how it is adopted."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import plain, print_facts, print_json, print_line, print_table, say
from appliance.cli.support.signing import receipt_value, sign_and_submit
from appliance.errors import Denied

_FOLDER = click.Path(path_type=Path)


@group("policy", example="appliance policy show")
def policy() -> None:
    """The policy set: show, export, adopt, test, compare."""


@policy.command("show", example="appliance policy show\nappliance policy show --cedar > policies.cedar")
@click.option("--cedar", is_flag=True, help="Print the Cedar policies alone.")
@reads
@click.pass_obj
def show(caller: Caller, cedar: bool) -> None:
    """The set in force: its digest, its parameters, its Cedar policies."""
    from appliance.client.policies import current_policy

    found = current_policy(caller.reading())
    if caller.json:
        print_json({"digest": found.digest, "policy": found.policy.model_dump(mode="json")})
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
@click.argument("folder", type=_FOLDER)
@reads
@click.pass_obj
def export(caller: Caller, folder: Path) -> None:
    """Write the set in force to a new folder, to be edited and adopted again. Its bytes are checked by their digest.

    Give the folder the set's name: a set is named after its folder. Test cases are not part of a set in force.
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
@click.argument("folder", type=_FOLDER)
@signs
@click.pass_obj
def adopt(caller: Caller, folder: Path) -> None:
    """Order that a policy set is put in force: a folder with parameters.json, policies.cedar and schema.cedarschema.

    Shows what would change. Needs two administrators.
    """
    from appliance.client.policies import list_changes, load_policy, propose_adoption

    new = load_policy(folder)
    say(*map(plain, list_changes(caller.reading(), new.policy)))
    receipt = sign_and_submit(caller, propose_adoption(caller.about, caller.signer, new))
    if caller.json:
        print_json(receipt_value(receipt))
    else:
        print_facts([("policy set", new.digest), ("entry", receipt.index), ("outcome", receipt.outcome)])
    if receipt.outcome == "pending":
        say(f"next: another administrator types: appliance order endorse {receipt.order[:19]}")


@policy.command("test", example="appliance policy test policies/default")
@click.argument("folder", type=_FOLDER)
@reads
@click.pass_obj
def test(caller: Caller, folder: Path) -> None:
    """Run a set's test cases (tests.json) with the service's own policy engine. Fails if one does not pass."""
    from appliance.client.policies import run_cases

    results = run_cases(caller.reading(), folder)
    failed = [result for result in results if not result["passed"]]
    if caller.json:
        print_json({"results": results, "passed": len(results) - len(failed), "failed": len(failed)})
    else:
        print_table(
            ("case", "result", "expected", "got"),
            [(r["name"], "passed" if r["passed"] else "FAILED", r["expected"], r["got"]) for r in results],
        )
    say(f"{len(results) - len(failed)} of {len(results)} cases passed.")
    if failed:
        names = tuple(str(result["name"]) for result in failed)
        raise Denied(f"policy set {folder}: expected every case to pass, got {len(failed)} that did not", reasons=names)


@policy.command("diff", example="appliance policy diff policies/strict-example")
@click.argument("folder", type=_FOLDER)
@reads
@click.pass_obj
def diff(caller: Caller, folder: Path) -> None:
    """What would change: parameters, Cedar policies and schema, as a unified diff against the set in force."""
    from appliance.client.policies import current_policy, load_policy
    from appliance.domain.governance.policy_changes import differences

    old, new = current_policy(caller.reading()), load_policy(folder)
    changes = differences(old.policy, new.policy)
    if caller.json:
        print_json({"in_force": old.digest, "other": new.digest, "diff": changes})
        return
    for line in changes:
        print_line(plain(line))
    say("No text differs." if not changes else f"In force: {old.digest}. The other: {new.digest}.")
