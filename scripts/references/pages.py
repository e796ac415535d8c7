"""The pages of docs/reference, each made from the code that it describes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from appliance.config import explain
from appliance.domain.core.names import EXCLUSIVE_ROLES
from appliance.domain.core.order import Order
from appliance.domain.core.verb import Verb
from appliance.domain.recipe.recipe import Recipe
from appliance.domain.recipe.template import say_range
from appliance.domain.rulebook.registry import VERBS
from scripts.references.error_codes import COMMAND_LINE, SECTIONS, Code

ROLES = {
    "administrator": "enrols people and units, adopts policy, keeps the appliance",
    "operator": "imports bases and datasets, trains",
    "validator": "imports the rows that adapters are judged on",
    "auditor": "reads the log, has runs replayed",
    "unit": "asks its released adapters for answers",
    "reviewer:FIELD": "judges adapters in one field, such as `reviewer:privacy`",
    "release-owner:UNIT": "decides which adapter answers a unit, such as `release-owner:legal`",
}
"""Every role as people type it, and what its holder does."""

RELATIONS = {
    "any reviewer": "a reviewer of any field",
    "the unit": "the unit itself",
    "the key's owner": "the person or unit whose key it is",
    "who ordered it": "the operator who ordered it",
}
"""Signers that are no role: what they are to the thing that the order is about."""

EXIT_CODES = (
    (0, "it was done", "nothing is to be done"),
    (1, "a defect of the appliance; `APPLIANCE_DEBUG=1` shows where", "who maintains the appliance"),
    (2, "a value, a file or the command line is wrong, or over a limit", "you: the message says what was expected"),
    (3, "not authenticated, or not allowed", "you or an administrator: every reason is listed"),
    (4, "no such thing, as far as you may know", "you"),
    (5, "it was done already, or the thing is in another state", "you"),
    (6, "bytes, a signature or the history do not hold", "stop, and call an auditor"),
    (7, "service, database, machine or a check was not available", "try again; then an administrator"),
    (8, "`gate check`: a gate failed", "who ordered the run: the verdict says why"),
    (9, "`gate check`: there is no verdict, or its gates could not be judged", "who ordered the run"),
    (130, "you stopped it, or said no", "nothing is to be done"),
    (141, "the program that read the output has ended", "nothing is to be done"),
)


def render_recipe() -> str:
    """docs/reference/recipe.md."""
    schema = Recipe.model_json_schema()
    rows = [
        (f"`{key}`", found["description"], say_range(found), _default(key, found.get("default"), schema["required"]))
        for key, found in schema["properties"].items()
    ]
    return _RECIPE.format(rows=_table(("key", "meaning", "range", "default"), rows))


def _default(key: str, default: object, required: Sequence[str]) -> str:
    return "required" if key in required else "none" if default is None else f"`{default}`"


def render_roles() -> str:
    """docs/reference/roles.md."""
    rows = [
        (
            f"`{role}`",
            meaning,
            ", ".join(f"`{verb.name}`" for verb in VERBS.values() if orders(role, verb)) or "none of its own",
            "yes" if role in EXCLUSIVE_ROLES else "no",
        )
        for role, meaning in ROLES.items()
    ]
    relations = [
        (meaning, ", ".join(f"`{verb.name}`" for verb in VERBS.values() if relation in verb.signers))
        for relation, meaning in RELATIONS.items()
        if relation != "any reviewer"
    ]
    return _ROLES.format(
        roles=_table(("role", "what they do", "orders", "held alone"), rows),
        relations=_table(("signer", "orders"), relations),
    )


def orders(role: str, verb: Verb) -> bool:
    """Whether a holder of the role may sign the verb, whatever they are to what it is about."""
    return role in verb.signers or (role.startswith("reviewer") and "any reviewer" in verb.signers)


def render_verbs() -> str:
    """docs/reference/verbs.md: a section for each subject, in the order of the registry."""
    subjects: dict[str, list[Verb]] = {}
    for verb in VERBS.values():
        subjects.setdefault(verb.order.__module__.split(".")[-2], []).append(verb)
    sections = [
        f"## {subject.capitalize()}\n\n{_table(_VERB_HEADERS, map(_verb_row, verbs))}"
        for subject, verbs in subjects.items()
    ]
    return _VERBS.format(sections="\n\n".join(sections))


_VERB_HEADERS = ("verb", "signed by", "two administrators", "entry", "members", "what the signature means")


def _verb_row(verb: Verb) -> tuple[str, ...]:
    members = verb.order.model_fields.keys() - Order.model_fields.keys()
    return (
        f"`{verb.name}`",
        ", ".join(signer if signer in RELATIONS else f"`{signer}`" for signer in verb.signers),
        "yes" if verb.two_administrators else "no",
        "that of the endorsed order" if verb.event is None else f"`{verb.event.type}`",
        ", ".join(f"`{name}`" for name in verb.order.model_fields if name in members),
        verb.told,
    )


def render_errors() -> str:
    """docs/reference/errors.md."""
    sections = []
    for title, codes in SECTIONS.items():
        rows = [_code_row(name, code, codes is not COMMAND_LINE) for name, code in codes.items()]
        sections.append(f"## {title}\n\n{_table(_CODE_HEADERS, rows)}")
    exits = _table(("exit code", "what happened", "who acts"), [(str(code), *rest) for code, *rest in EXIT_CODES])
    return _ERRORS.format(exits=exits, sections="\n\n".join(sections))


def render_console_codes() -> str:
    """What the console says of a code on the page of a refusal: [what it means, what to do]."""
    found = {name: [code.meaning, code.action] for section in SECTIONS.values() for name, code in section.items()}
    return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


_CODE_HEADERS = ("code", "exit code", "HTTP status", "what it means", "what to do")


def _code_row(name: str, code: Code, has_status: bool) -> tuple[str, ...]:
    return (
        f"`{name}`",
        " or ".join(dict.fromkeys(str(branch.exit_code) for branch in code.branches)) or "none: in an entry only",
        " or ".join(dict.fromkeys(str(branch.status) for branch in code.branches)) if has_status else "",
        code.meaning,
        code.action,
    )


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(re.sub(r" +", " ", f"| {' | '.join(line)} |") for line in lines)


_RECIPE = """# Recipe keys

A recipe says how an adapter is trained. Begin one with every key explained by
`appliance recipe new`; see what it would cost with `appliance run plan recipe.yaml`; order it with
`appliance run start recipe.yaml`. Three keys are required:

```yaml
name: clauses
base: smollm2
dataset: clauses@1
```

`auto` leaves a value to the appliance, which shows it before you sign. An unknown key is refused.
[training.md](../training.md) compares the methods. This page is written by `scripts/reference` from
the recipe's own model.

{rows}
"""

_ROLES = """# Roles

A role says which orders a person may sign. `appliance principal grant NAME ROLE` gives one more
role; it needs two administrators. A role in the column *held alone* excludes every other role.
Separation of duties and the site's own policies can refuse an order that the role allows:
[formats/ledger.md](../formats/ledger.md#who-may) has every condition. This page is written by
`scripts/reference` from the registry of verbs.

{roles}

Some orders can also be signed by a person who has a relation to the thing:

{relations}
"""

_VERBS = """# Verbs

A verb is something that a person can order. An order is signed by the person, and becomes one entry
of the log. Where two administrators are needed, the first order waits as `order.pending` until
another administrator signs `endorse`; with a single administrator it takes effect at once. An order
that is refused becomes `order.refused`. [formats/order.md](../formats/order.md) has the bytes, and
[roles.md](roles.md) the orders of each role. This page is written by `scripts/reference` from the
registry of verbs.

Every order also has `origin`, `signer`, `nonce`, `issued_at`, `expires_at` and `reason`.

{sections}
"""

_ERRORS = """# Exit codes and error codes

A command that fails prints one line on stderr. The code in brackets is stable:

```
error: signer: expected --as NAME, APPLIANCE_PRINCIPAL or a login, got none of them [not-authenticated]
```

With `--json` the error is one JSON line: `{{"error": {{"code", "message", "reasons", "exit_code"}}}}`.
The service answers HTTP requests with the status in the table and the same code. Programs should
look at the exit code or the status first, and then at the code. This page is written by
`scripts/reference` from the classes of errors and from one table of codes.

## Exit codes

One table holds for every command.

{exits}

Some commands end with a code for their finding: a policy set whose test cases do not pass ends with
3, `run replay` with the verdict `different` with 6. `ledger verify` ends with 6 if something does
not hold, and with 7 if it could not check everything. `doctor` ends with 7 if a finding is `fail`,
and `stop` if the service did not end in time.

An error code with two exit codes belongs to two kinds of errors: the message says which it is. A
code that came from a worker is also in the entry that ends an import or a run.

{sections}
"""

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": explain.render_page,
    "recipe.md": render_recipe,
    "roles.md": render_roles,
    "verbs.md": render_verbs,
    "errors.md": render_errors,
}
"""Every page of docs/reference by its name."""
