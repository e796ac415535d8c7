"""The table of commands, and the groups that modules add commands to."""

from __future__ import annotations

from typing import NamedTuple

from appliance.cli.support.command import CommandGroup


class CommandEntry(NamedTuple):
    """The audience, modules and help of a command or group, and its place in the manual."""

    audience: str
    files: tuple[str, ...]
    """Modules of `appliance.cli` that define the command, or add commands to the group."""
    help: str
    manual: str


COMMANDS = {
    "init": CommandEntry(
        "Administrators",
        ("administrators",),
        "Make an appliance: keys, database, first policy set.",
        "operations/service/",
    ),
    "login": CommandEntry(
        "Everyone",
        ("logins",),
        "Remember your name, key and appliance, so that no command needs --as and --key.",
        "guides/command-line/#your-login",
    ),
    "logout": CommandEntry(
        "Everyone",
        ("logins",),
        "Forget your login, and end the session at the service.",
        "guides/command-line/#your-login",
    ),
    "whoami": CommandEntry(
        "Everyone",
        ("logins",),
        "Show your name, roles and key, the appliance, its log and trust file.",
        "guides/command-line/#your-login",
    ),
    "console": CommandEntry(
        "Everyone",
        ("logins",),
        "Sign a browser in: print an address that works once.",
        "guides/console/#signing-in-and-out",
    ),
    "agent": CommandEntry(
        "Everyone",
        ("logins",),
        "Hold your unlocked key for some minutes; reading then asks for no passphrase.",
        "guides/command-line/#the-agent",
    ),
    "key": CommandEntry(
        "Everyone",
        ("people",),
        "Make, show, prove, rotate and revoke your own key. The service never gets it.",
        "guides/command-line/#keys-that-change",
    ),
    "principal": CommandEntry(
        "Administrators",
        ("administrators",),
        "Enrol, list and revoke people and units, and grant roles.",
        "guides/people/",
    ),
    "identity": CommandEntry(
        "Administrators",
        ("administrators",),
        "Bind people to subjects of the site's identity provider.",
        "guides/identity/",
    ),
    "order": CommandEntry(
        "Administrators",
        ("orders",),
        "List, show, countersign and withdraw orders that wait for a second administrator, and check files of orders.",
        "guides/administrators/",
    ),
    "policy": CommandEntry(
        "Administrators",
        ("governance",),
        "Show, export, adopt, test and compare policy sets.",
        "guides/administrators/#change-the-policy",
    ),
    "rules": CommandEntry(
        "Administrators",
        ("governance",),
        "Show or raise the version of the rules that apply to new entries.",
        "upgrade/#upgrade",
    ),
    "clock": CommandEntry(
        "Administrators",
        ("governance",),
        "Show the log's time and the host's clock, or reset the log's time.",
        "operations/service/#a-clock-that-ran-ahead",
    ),
    "restoration": CommandEntry(
        "Administrators",
        ("restorations",),
        "Continue the log from an older state, after a restore of a backup.",
        "operations/backup/#an-older-log",
    ),
    "log-key": CommandEntry(
        "Administrators",
        ("people",),
        "Replace a key that signs the log's checkpoints.",
        "guides/command-line/#keys-that-change",
    ),
    "post-quantum": CommandEntry(
        "Administrators",
        ("people",),
        "Have checkpoints and adapters signed by ML-DSA-65 as well.",
        "guides/command-line/#post-quantum-signatures",
    ),
    "text": CommandEntry(
        "Administrators",
        ("people",),
        "Erase printed names and free texts.",
        "guides/command-line/#texts-that-are-erased",
    ),
    "hold": CommandEntry(
        "Administrators", ("people",), "Place, lift and list legal holds.", "guides/command-line/#texts-that-are-erased"
    ),
    "serve": CommandEntry(
        "Administrators", ("releases.releases",), "Run the service in the foreground.", "operations/service/#starts"
    ),
    "stop": CommandEntry(
        "Administrators",
        ("service",),
        "Stop the running service, and wait until it has ended.",
        "operations/service/#starts",
    ),
    "status": CommandEntry(
        "Administrators",
        ("service",),
        "One screen: the service, its log, its jobs, and pending decisions.",
        "operations/monitoring/",
    ),
    "doctor": CommandEntry(
        "Administrators",
        ("service",),
        "Check everything that an appliance needs, and how to correct it.",
        "troubleshooting/#first-steps",
    ),
    "diagnose": CommandEntry(
        "Administrators",
        ("diagnosis",),
        "Collect what a maintainer needs into one file, without texts, keys or rows.",
        "operations/monitoring/#hand-facts-to-a-maintainer",
    ),
    "backup": CommandEntry(
        "Administrators",
        ("backups",),
        "Make, list, verify, remove and restore encrypted backups.",
        "operations/backup/",
    ),
    "signer": CommandEntry(
        "Administrators",
        ("signer",),
        "Have the service's signing keys in a process of its own.",
        "operations/signer/",
    ),
    "storage": CommandEntry(
        "Administrators", ("service",), "Show what uses the disk.", "operations/service/#when-the-disk-is-almost-full"
    ),
    "config": CommandEntry(
        "Administrators",
        ("service",),
        "Show the effective settings, or check a file of settings.",
        "operations/service/#settings",
    ),
    "update-compatibility": CommandEntry(
        "Administrators",
        ("builds",),
        "Say whether processes of this build and of another one can serve one log.",
        "upgrade/#several-hosts",
    ),
    "advisories": CommandEntry(
        "Administrators",
        ("advisories",),
        "Compare the installed libraries with published advisories, without a network.",
        "security/vulnerabilities/#check-the-libraries",
    ),
    "database": CommandEntry(
        "Administrators",
        ("builds",),
        "Check and migrate the database of this home, as an upgrade does.",
        "upgrade/#the-steps-by-hand",
    ),
    "base": CommandEntry(
        "Operators", ("operators", "imports"), "Import, list and revoke base models.", "guides/models/"
    ),
    "dataset": CommandEntry(
        "Operators",
        ("operators", "imports", "history"),
        "Check, import, list, show and revoke datasets.",
        "guides/datasets/",
    ),
    "import": CommandEntry(
        "Operators", ("imports",), "List or cancel imports that were ordered.", "guides/operators/#import"
    ),
    "validation-set": CommandEntry(
        "Validators",
        ("imports",),
        "Import, list, show and revoke validation sets.",
        "guides/validators/",
    ),
    "recipe": CommandEntry(
        "Operators", ("runs.records",), "Begin a new recipe, with every key explained.", "guides/training/"
    ),
    "run": CommandEntry(
        "Operators",
        ("operators", "runs.plans", "runs.records", "runs.sweeps"),
        "Plan, start, follow and list training runs, and act on them.",
        "guides/operators/#train",
    ),
    "gate": CommandEntry(
        "Reviewers",
        ("runs.gates",),
        "List, show and check gates, which an adapter must pass.",
        "guides/training/#gates",
    ),
    "review": CommandEntry(
        "Reviewers",
        ("releases.reviews",),
        "List and show adapters under review, and approve or reject them.",
        "guides/reviewers/",
    ),
    "finding": CommandEntry(
        "Reviewers",
        ("releases.decisions",),
        "Add, list and close findings of reviewers about adapters.",
        "guides/reviewers/#findings",
    ),
    "delegation": CommandEntry(
        "Reviewers",
        ("releases.decisions",),
        "Add, list and end delegations, which let another person decide in a reviewer's place.",
        "guides/reviewers/#delegation",
    ),
    "release": CommandEntry(
        "Units",
        ("releases.releases", "releases.decisions"),
        "Request, activate, roll back, suspend and export releases of adapters, and show their history.",
        "guides/release-owners/",
    ),
    "adapter": CommandEntry(
        "Units", ("releases.releases",), "List, show and revoke sealed adapters.", "guides/reviewers/#what-you-see"
    ),
    "token": CommandEntry(
        "Units",
        ("tokens",),
        "Issue and revoke a unit's API keys, or let an application renew them.",
        "guides/units/",
    ),
    "ledger": CommandEntry(
        "Auditors", ("ledger", "archives", "feed", "history"), "Read, export and verify the log.", "guides/auditors/"
    ),
    "witness": CommandEntry(
        "Witnesses",
        ("witnesses",),
        "Request, accept and list cosignatures at the appliance, or give them on the witness's own machine.",
        "formats/witness/",
    ),
    "completion": CommandEntry("Everyone", ("people",), "Print the shell's completion script.", "guides/command-line/"),
}
"""All commands, in the order of the help."""

GROUPS: dict[str, CommandGroup] = {}
"""The groups by name."""


def _group(name: str, *, example: str, more: str = "") -> CommandGroup:
    """Return a new group of `COMMANDS`. `more` follows its help if it is shown alone."""
    GROUPS[name] = CommandGroup(name, help=f"{COMMANDS[name].help}\n\n{more}", example=example)
    return GROUPS[name]


agent = _group(
    "agent", example="appliance agent start --minutes 60", more="An agent holds it, which you start and stop here."
)
key = _group("key", example="appliance key new ada.key")
principal = _group("principal", example="appliance principal list")
identity = _group(
    "identity",
    example="appliance identity bind olga 248289761001",
    more="Policy can require ID tokens of the provider for sessions.",
)
order = _group("order", example="appliance order list")
policy = _group("policy", example="appliance policy show")
rules = _group("rules", example="appliance rules show")
clock = _group("clock", example="appliance clock show", more="A reset is needed after the host's clock was ahead.")
restoration = _group(
    "restoration",
    example="appliance restoration show\nappliance restoration order",
    more="The log then lacks entries that others have seen. Type these on the service's host, at the people's socket.",
)
log_key = _group(
    "log-key",
    example="appliance log-key rotate --old-until 30d",
    more="The service holds the key; two administrators replace it.",
)
post_quantum = _group("post-quantum", example="appliance post-quantum add", more="Two administrators order it, once.")
text = _group(
    "text",
    example="appliance text erase --printed-name-of mallory",
    more="The log contains only their commitments, so they can be erased.",
)
hold = _group(
    "hold",
    example="appliance hold list",
    more="While one is valid, no text of an entry about its subject can be erased, and no such record can be archived.",
)
backup = _group(
    "backup",
    example="appliance backup create /media/backup\nappliance backup list /media/backup",
    more="Type these on the service's host, as the service's account. The service may run meanwhile.",
)
signer = _group(
    "signer",
    example="appliance signer init --folder /var/lib/appliance-signer --passphrase-file passphrase",
    more="Type these as the signer's account.",
)
config = _group("config", example="appliance config show\nappliance config check gateway-1.toml")
update_compatibility = _group(
    "update-compatibility",
    example="appliance update-compatibility check compatibility.json\nappliance update-compatibility metadata",
)
advisories = _group("advisories", example="appliance advisories check /media/usb/PyPI.zip")
database = _group(
    "database",
    example="appliance database check\nappliance database migrate",
    more="Type these on the service's host, as the service's account. /usr/lib/appliance/upgrade runs them by itself.",
)
base = _group("base", example="appliance base list")
dataset = _group("dataset", example="appliance dataset list")
imports = _group("import", example="appliance import list")
validation_set = _group(
    "validation-set",
    example="appliance validation-set list",
    more="Adapters are evaluated on validation sets, and never trained on them.",
)
recipe = _group("recipe", example="appliance recipe new --output recipe.yaml")
run = _group("run", example="appliance run start recipe.yaml --follow")
gate = _group("gate", example="appliance gate check clauses@1", more="Gates are fixed before the adapter's run.")
review = _group("review", example="appliance review list")
finding = _group("finding", example="appliance finding list")
delegation = _group("delegation", example="appliance delegation list")
release = _group("release", example="appliance release history --unit legal")
adapter = _group("adapter", example="appliance adapter list")
token = _group(
    "token", example="appliance token issue --as legal --key legal.key", more="A key is valid for an hour at most."
)
ledger = _group("ledger", example="appliance ledger log --since 7d --outcome denied")
witness = _group("witness", example="appliance witness vkey w1.key --name witness.example/w1")
