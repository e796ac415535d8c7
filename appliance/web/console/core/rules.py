"""What each reason of a refusal is: an invariant, a number of the policy set, a condition or a state; and what would
allow the action.

A reason begins with what it is about, such as `quorum:` or `review 26:`. tests/web/console/test_why.py walks every
reason that the rules can give, and fails where none of these rows fits it.
"""

from __future__ import annotations

import re

INVARIANT = "invariant: no policy can loosen it"
POLICY = "parameter of the policy set in force"
SITE = "policy of the site"
CONDITION = "condition of an approval"
STATE = "state of the thing"
ORDER = "value in the order"
MACHINE = "state of this machine"

_ROWS: tuple[tuple[str, str, str], ...] = (
    # People and their keys.
    (r"role:", INVARIANT, "Ask somebody who has the role, or have two administrators grant it to you."),
    (
        r"separation of duties:",
        INVARIANT,
        "Ask another person: you cannot approve what you made, and some roles exclude others.",
    ),
    (r"administrators:", INVARIANT, "Enrol another administrator first."),
    (
        r"administrators' keys:",
        INVARIANT,
        "Let the set allow the passkeys that administrators have, or let them enrol keys first that it allows.",
    ),
    (r"principal: expected a name", ORDER, "Choose another name: a name belongs to one principal for good."),
    (r"principal: expected (another|the signer)", ORDER, "Name the right person: the reason says whom it expects."),
    (r"principal:", STATE, "Name a person or unit that is enrolled and was not revoked."),
    (r"signer:", INVARIANT, "The person that the reason names has to sign this order."),
    (r"session:|token of |token |tokens:|issued before:", STATE, "Open a new session, or make a new token."),
    (r"application of|application:|application ", STATE, "The unit has to enrol an application under a new name."),
    (
        r"key: expected (each|one never|the key id|a passkey)|credential id:",
        ORDER,
        "Make a new key: each counts for one principal, once.",
    ),
    (r"key", STATE, "Sign with, or name, a key that counts now: appliance key list."),
    (r"passkey: expected a name", ORDER, "Give the passkey another name."),
    (r"passkey", POLICY, "Make a passkey of a kind that policy allows, at the address of this console."),
    (r"old keys:", POLICY, "Let the old key end earlier: policy bounds how long both count."),
    (r"log key:", INVARIANT, "Rotate to a new key of this log: appliance log-key rotate."),
    (r"since:", ORDER, "Name an entry after the key was enrolled."),
    (r"on behalf of:", STATE, "Decide in your own name, or have the reviewer delegate to you again."),
    # Orders.
    (r"order ", ORDER, "The person who signs an order has to be the one that it names."),
    (r"order:", STATE, "Sign the order again: it has expired, or no longer waits."),
    (r"verb:|rules:", STATE, "Two administrators have to raise the rules version: appliance rules raise."),
    (r"clock", INVARIANT, "Correct the machine's clock, or have two administrators reset it: appliance clock reset."),
    (r"until:", POLICY, "Give an end within the time that policy allows."),
    (r"valid until: expected none", ORDER, "Leave the date empty: this decision has none."),
    (r"valid until:", POLICY, "Give a date that is after now and within what policy allows."),
    (r"due: expected at most", POLICY, "Give an earlier date: policy bounds how long an exception lasts."),
    (r"due:", ORDER, "Give a date after now."),
    (r"reason:", ORDER, "Write a reason."),
    (r"decision:", STATE, "There is nothing to withdraw. Record a decision instead."),
    (r"opened,", STATE, "Open the tabs Changes, Quality and Findings of the adapter's page, then decide again."),
    (r"opened:", STATE, "Decide again from the adapter's page."),
    # Releases.
    (r"quorum:", POLICY, "More reviewers have to approve, in the fields that the policy asks for."),
    (
        r"request: expected exposure|exposure:|purpose:",
        POLICY,
        "Request the release with an exposure and a purpose that policy lists.",
    ),
    (r"request: expected one that a person", INVARIANT, "Only a request that a person made can be withdrawn."),
    (r"request:", STATE, "Request the release, or request it again: appliance release request."),
    (r"tier:", POLICY, "Name the tier that policy gives to this exposure and purpose."),
    (r"verdict:", ORDER, "Request the release again: the request names the adapter's own verdict."),
    (
        r"verdict of .*: expected one that passed",
        POLICY,
        "Train another adapter that passes its gates, or have the reviewers record an exception that accepts the "
        "verdict, as far as policy allows one.",
    ),
    (
        r"verdict of .*: expected one by gates",
        POLICY,
        "Train it again under a gate set that policy requires: appliance run start --gates.",
    ),
    (r"accepts verdict:", ORDER, "An exception accepts a verdict that did not pass, and does not block."),
    (
        r"review .*: expected an approval",
        STATE,
        "The reviewer who rejected it, or asked for changes, has to approve it or withdraw the decision.",
    ),
    (
        r"review .*: expected one (made on|that was made again)",
        POLICY,
        "The reviewer has to approve again: what the approval rested on has changed, or its time is over.",
    ),
    (r"review ", STATE, "The reviewer has to approve again: what the approval rested on has changed or ended."),
    (r"finding:", ORDER, "Name the entry of an open finding: appliance finding list."),
    (r"finding .*: expected an open one", STATE, "It is closed. You need not do anything."),
    (r"finding", STATE, "Somebody whom the finding names has to close it; its owner removes what it found."),
    (r"condition of |conditions?:", CONDITION, "Meet the condition, or get a new approval with another one."),
    (r"adapter: expected (an earlier|one that answered)", STATE, "Name a version that answered this task before."),
    (r"adapter: ", ORDER, "Name a sealed adapter: appliance adapter list."),
    (r"adapter .*: expected the manifest", STATE, "The order is for other bytes. Prepare it again from the adapter."),
    (r"adapter .*: expected one that was judged on", STATE, "Train it again: runs are judged on the engine now."),
    (r"adapter .*: expected one made for release", STATE, "Train it again with the purpose release."),
    (r"adapter .*: expected its bytes whole", STATE, "Its files changed on disk. Restore them, or train it again."),
    (r"adapter .*: expected one whose approvals", INVARIANT, "Roll back instead: no emergency is needed for that."),
    (r"adapter", STATE, "Train and approve another adapter: a revocation cannot be undone."),
    (r"release .*: expected an emergency", INVARIANT, "The release owner has to activate an approved adapter."),
    (r"release", STATE, "The release owner has to activate an approved adapter again."),
    (r"export", STATE, "The release owner has to export it again."),
    (r"instruction of dataset", STATE, "The release owner has to activate it without the instruction."),
    (r"unit: expected the signer", INVARIANT, "The unit itself has to sign this."),
    (r"unit:", INVARIANT, "Two administrators have to enrol the unit."),
    (r"tasks:", ORDER, "Name each task once."),
    (r"prompts:", ORDER, "Send the prompts again: each needs a key of its own."),
    (r"tries of ", POLICY, "Wait a day: policy bounds how many prompts a reviewer tries."),
    (r"looks of ", STATE, "Wait until the look that is open has ended."),
    # Runs, data, evaluation.
    (r"sweep .*: expected a new name", ORDER, "Give the sweep a name of its own."),
    (
        r"sweep .*: expected at most",
        POLICY,
        "Order fewer runs in one sweep, or wait until your other sweeps have ended: policy bounds them.",
    ),
    (r"sweep:", ORDER, "Let the recipe validate: a sweep chooses by validation losses."),
    (r"slurm:", POLICY, "Train on the service's machine, or have the policy give you an account: slurm_accounts."),
    (r"nodes: ", ORDER, "Order as many nodes as the reason says. More than one is for a cluster."),
    (r"on: ", INVARIANT, "Train on the service's machine: appliance run start --on here."),
    (r"run: |step |steps:", ORDER, "Name a run, and steps of it that have a training checkpoint: appliance run list."),
    (r"run .*, order:", ORDER, "Prepare the order again from the run's page."),
    (r"run .*: expected .*; order a run", POLICY, "Order a run for that tier, and have a second person authorise it."),
    (r"run ", STATE, "The run's state does not allow it. Look at its page, and order another run if needed."),
    (r"base: expected (a name|no import)", ORDER, "Give the base another name, or wait until its import has ended."),
    (r"base .*: expected its bytes whole", STATE, "Its files changed on disk. Restore them: appliance ledger verify."),
    (r"base", STATE, "Use a base that was imported and is not revoked: appliance base list."),
    (r"dataset.*: expected one rendered for base", STATE, "Import the dataset for this base."),
    (r"dataset, held-out rows:", INVARIANT, "Hold out fewer rows when you import the dataset."),
    (r"dataset", STATE, "Use a dataset that was imported and is not revoked: appliance dataset list."),
    (
        r"validation sets?: expected a name|file ",
        ORDER,
        "Choose another name or file: what judges adapters is never trained on.",
    ),
    (r"validation sets: expected none|sets of no log:", ORDER, "Name sets by a gate set, or leave them out."),
    (r"validation set", STATE, "Use a validation set that was imported for this base, and is not revoked."),
    (r"set ", STATE, "Use a set that fits the dataset: appliance gate show."),
    (r"gates:", POLICY, "Name a gate set that policy requires: appliance policy show."),
    (r"licence:|classification:", POLICY, "Use one that policy lists, or have the policy changed."),
    (r"import", STATE, "It has ended, or was never ordered. Order another import."),
    (r"recipe, |plan, ", MACHINE, "Change the recipe as the reason says: appliance run plan advises."),
    # What is kept.
    (r"legal hold of entry|hold:", STATE, "An administrator has to lift the hold first, or name another subject."),
    (r"text:", STATE, "Name a text that an order of this log binds and that was not erased."),
    (r"printed name:|.*: expected its retention", POLICY, "Wait until its retention has ended."),
    # Policy, witnesses, the machine.
    (r"site polic", SITE, "The site's own policies have to allow it: appliance policy show."),
    (r"policy", SITE, "The site's own policies have to allow it: appliance policy show."),
    (r"witness [^:]*:", ORDER, "Give each witness a key of its own."),
    (r"witnesses:", POLICY, "Enough witnesses have to cosign the log again: appliance witness request."),
    (r"worker, disk:|disk of", MACHINE, "Free space on the disk: appliance storage lists what uses it."),
)
"""(How a reason begins, the kind of rule, what would allow it). The first that fits counts."""
_RULES = tuple((re.compile(begins), kind, allows) for begins, kind, allows in _ROWS)


def find_rule(reason: str) -> tuple[str, str] | None:
    """The kind of rule that gave this reason and what would allow the action; None for a reason of no row."""
    for begins, kind, allows in _RULES:
        if begins.match(reason):
            return kind, allows
    # Of one of several people: the name stands first.
    _, colon, rest = reason.partition(": ")
    return find_rule(rest) if colon else None
