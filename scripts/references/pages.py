"""The pages of docs/reference, each made from the code that it describes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from appliance.access.requests import CedarRequest, name_entity, sample_requests
from appliance.config.description import render_page as render_configuration
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.action import Action
from appliance.domain.core.example import NOW
from appliance.domain.core.facts import Entity, OrderContext
from appliance.domain.core.names import EXCLUSIVE_ROLES, PARTED_ROLES, Value
from appliance.domain.core.order import Order
from appliance.domain.queries.alarms import RULES
from appliance.domain.recipe.parsing import describe_range
from appliance.domain.recipe.recipe import Recipe
from appliance.errors import KINDS, REFUSAL_CODES, RefusalCode
from scripts.references.commands import render_commands
from scripts.references.error_codes import APPLIANCE, COMMAND_LINE, SECTIONS, Code
from scripts.references.listeners import render_document, render_listener
from scripts.references.policy import render_policy
from scripts.references.tables import table

ROLES = {
    "administrator": "enrols people and units, adopts policy, keeps the appliance",
    "operator": "imports bases and datasets, trains",
    "validator": "imports the rows that adapters are evaluated on",
    "auditor": "reads the log, has runs replayed",
    "unit": "asks its released adapters for answers",
    "recovery": "is a key in a safe, which names a new administrator when too few have their keys",
    "reviewer:FUNCTION": "decides on adapters in one review function, such as `reviewer:privacy`",
    "release-owner:UNIT": "decides which adapter serves a unit, such as `release-owner:legal`",
}
"""Every role as people type it, and what its holder does."""

RELATIONS = {
    "any reviewer": "a reviewer of any review function",
    "the unit": "the unit itself",
    "the key's owner": "the person or unit whose key it is",
    "who ordered it": "the operator who ordered it",
    "who signed it": "the person who signed the order that waits",
    "a delegate": "the person to whom a reviewer delegated the review function",
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
    (9, "`gate check`: there is no verdict, or its gates could not be evaluated", "who ordered the run"),
    (130, "you stopped it, or said no", "nothing is to be done"),
    (141, "the program that read the output has ended", "nothing is to be done"),
)


def render_recipe() -> str:
    """docs/reference/recipe.md."""
    schema = Recipe.model_json_schema()
    rows = [
        (
            f"`{key}`",
            found["description"],
            describe_range(found),
            _default(key, found.get("default"), schema["required"]),
        )
        for key, found in schema["properties"].items()
    ]
    return _RECIPE.format(rows=table(("key", "meaning", "range", "default"), rows))


def _default(key: str, default: object, required: Sequence[str]) -> str:
    return "required" if key in required else "none" if default is None else f"`{default}`"


def render_roles() -> str:
    """docs/reference/roles.md."""
    rows = [
        (
            f"`{role}`",
            meaning,
            ", ".join(f"`{action.name}`" for action in ACTIONS.values() if orders(role, action)) or "none of its own",
            "yes" if role in EXCLUSIVE_ROLES else "no",
        )
        for role, meaning in ROLES.items()
    ]
    relations = [
        (meaning, ", ".join(f"`{action.name}`" for action in ACTIONS.values() if relation in action.signers))
        for relation, meaning in RELATIONS.items()
        if relation != "any reviewer"
    ]
    return _ROLES.format(
        parted=" and ".join(f"`{role}`" for role in PARTED_ROLES),
        roles=table(("role", "what they do", "orders", "held alone"), rows),
        relations=table(("signer", "orders"), relations),
    )


def orders(role: str, action: Action) -> bool:
    """Return True if a holder of the role may sign the action, whatever their relation to its subject."""
    return role in action.signers or (role.startswith("reviewer") and "any reviewer" in action.signers)


def render_actions() -> str:
    """docs/reference/actions.md: a section for each subject, in the order of the registry."""
    subjects: dict[str, list[Action]] = {}
    for action in ACTIONS.values():
        subjects.setdefault(action.order.__module__.split(".")[2], []).append(action)
    sections = [
        f"## {subject.capitalize()}\n\n{table(_ACTION_HEADERS, map(_action_row, actions))}"
        for subject, actions in subjects.items()
    ]
    requests = sample_requests().values()
    entities: dict[str, Entity] = {}
    for request in requests:
        entities |= {_name(entity): entity for entity in _list_entities(request.resource)}
    attributes = [(f"`{name}`", _show_attributes(entity)) for name, entity in sorted(entities.items())]
    return _ACTIONS.format(
        sections="\n\n".join(sections),
        now=NOW,
        examples=table(("action", "principal", "resource", "context"), map(_example_row, requests)),
        entities=table(("resource", "attributes"), attributes),
    )


def _example_row(request: CedarRequest) -> tuple[str, ...]:
    principal = f"`{request.principal.id}`, {', '.join(f'`{role}`' for role in request.principal.roles)}"
    return f"`{request.action}`", principal, f"`{_name(request.resource)}`", _show_attributes(request.context)


def _show_attributes(source: Value) -> str:
    values = [
        (name, value) for name, value in source if name not in ("id", *OrderContext.model_fields) and value is not None
    ]
    return ", ".join(f"`{name}` {_show_attribute(value)}" for name, value in values)


def _show_attribute(value: object) -> str:
    if isinstance(value, Entity):
        return _name(value)
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(entity: Entity) -> str:
    return f"{name_entity(type(entity))} {entity.id}"


def _list_entities(entity: Entity) -> Iterator[Entity]:
    yield entity
    for _, value in entity:
        if isinstance(value, Entity):
            yield from _list_entities(value)


_ACTION_HEADERS = ("action", "signed by", "second signature", "entry", "fields", "what the signature means")


def _action_row(action: Action) -> tuple[str, ...]:
    members = action.order.model_fields.keys() - Order.model_fields.keys()
    return (
        f"`{action.name}`",
        ", ".join(signer if signer in RELATIONS else f"`{signer}`" for signer in action.signers),
        _second_signature(action),
        "that of the countersigned order" if action.event is None else f"`{action.event.type}`",
        ", ".join(f"`{name}`" for name in action.order.model_fields if name in members),
        action.description,
    )


def _second_signature(action: Action) -> str:
    if not action.two_administrators:
        return "none"
    if callable(action.two_administrators):
        return "another administrator, if the signer lacks the role of the suspension"
    return "another administrator" if "administrator" in action.signers else "an administrator"


def render_errors() -> str:
    """docs/reference/errors.md."""
    sections = []
    for title, codes in SECTIONS.items():
        rows = [_code_row(name, code, codes is not COMMAND_LINE) for name, code in codes.items()]
        sections.append(f"## {title}\n\n{table(_CODE_HEADERS, rows)}")
    exits = table(("exit code", "what happened", "who acts"), [(str(code), *rest) for code, *rest in EXIT_CODES])
    return _ERRORS.format(exits=exits, sections="\n\n".join(sections))


def render_console_codes() -> str:
    """Return the texts of the codes on the console's page of a refusal: [meaning, action]."""
    found = {name: [code.meaning, code.action] for section in SECTIONS.values() for name, code in section.items()}
    return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


_CODE_HEADERS = ("code", "exit code", "HTTP status", "what it means", "what to do")


def _code_row(name: str, code: Code, has_status: bool) -> tuple[str, ...]:
    return (
        _anchored(name),
        " or ".join(dict.fromkeys(str(branch.exit_code) for branch in code.branches)) or "none: in an entry only",
        " or ".join(dict.fromkeys(str(branch.status) for branch in code.branches)) if has_status else "",
        code.meaning,
        code.action,
    )


def _anchored(code: str) -> str:
    """Return a code with the anchor at which appliance.addresses finds it."""
    return f'<a id="{code}"></a>`{code}`'


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
[training.md](../guides/training.md) compares the methods. This page is written by
`scripts/reference` from the recipe's own model.

{rows}
"""


def render_alarms() -> str:
    """docs/reference/alarms.md."""
    rows = [(f"`{rule.code}`", rule.severity, rule.meaning, rule.threshold, rule.action) for rule in RULES]
    return _ALARMS.format(rows=table(("code", "severity", "when it is on", "expected instead", "what to do"), rows))


_ALARMS = """# Alarms

An alarm says that a person must act before something stops (`warning`), or because it has stopped
(`critical`). [Watch the service](../operations/monitoring.md) says where alarms are shown. This
page is written by `scripts/reference` from the definitions in `domain/queries/alarms.py`, and so
are the rules for Prometheus.

{rows}
"""

_ROLES = """# Roles

A role says which orders a person may sign. `appliance principal grant NAME ROLE` gives one more
role; it needs two administrators. A role in the column *held alone* excludes every other role. In
addition, {parted} exclude each other. Separation of duties and the
site's own policies can refuse an order that the role allows:
[formats/ledger.md](../formats/ledger.md#who-may) has every condition. This page is written by
`scripts/reference` from the registry of actions.

{roles}

Some orders can also be signed by a person who has a relation to the thing:

{relations}
"""

_ACTIONS = """# Actions

An action is something that a person can order. The person signs the order, and it becomes one entry
of the log. Where a second signature is needed, the first order waits as `order.pending` until an
administrator signs `countersign`. At a site with a single administrator such an order takes effect
at once, except that `break-glass` is refused there. An order that is refused becomes
`order.refused`. [formats/order.md](../formats/order.md) has the bytes, and [roles.md](roles.md) the
orders of each role. This page is written by `scripts/reference` from the registry of actions.

Every order also has `origin`, `signer`, `nonce`, `issued_at`, `expires_at` and `reason`.

{sections}

## Examples

The reference example of each action, as a site's policies see it. A policy set is tried with these
before its adoption, and a case in its `tests.json` starts from them
([administrators.md](../guides/administrators.md#change-the-policy)). Every context also has `now`,
{now}, and `single_administrator`, which is false.

{examples}

The resources and their attributes, which may name other resources:

{entities}
"""

_ERRORS = """# Exit codes and error codes

A command that fails prints its error on stderr. The code in brackets is stable. The last line says
where this machine has the code's page of the manual. This is a page of the installed package, or in
a clone of the source the file that the page is built from:

```
error: signer: expected --as NAME, APPLIANCE_PRINCIPAL or a login, got none of them [not-authenticated]
manual: file:///opt/appliance/lib/python3.11/site-packages/appliance/manual/reference/errors/index.html#not-authenticated
```

Without such a file, it is the address at the console. If rules refused the order, each reason has a
line of its own, and the last lines lead to their codes.

With `--json` the error is one JSON line:
`{{"error": {{"code", "message", "reasons", "refusals", "exit_code"}}}}`. `reasons` are the problems of
an input. `refusals` are those of [refusals.md](refusals.md), and `message` then has all their
sentences.
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

_REFUSALS = """# Refusals

Where a rule refuses an order, a load or a request, it gives a refusal: a code, the subject that it
is about, and the values of its sentence. The API sends `code`, `subject`, `values`, `kind`,
`sentence` and `remedy`. The log records code, subject and values. Of a value that the log does not
know, such as a name that nobody has, it records the length. In the sentences below, `{{id}}` is the
name in the subject. This page is written by `scripts/reference` from the declarations beside the
rules.

| kind | what refuses |
| --- | --- |
{kinds}

{sections}
"""


def render_refusals() -> str:
    """docs/reference/refusals.md."""
    sections = []
    for kind in KINDS:
        codes = sorted((code for code in load_refusal_codes() if code.kind == kind), key=lambda code: code.name)
        rows = [(_anchored(code.name), code.sentence, code.remedy) for code in codes]
        sections.append(f"## {kind.capitalize()}\n\n{table(('code', 'sentence', 'remedy'), rows)}")
    kinds = "\n".join(f"| {kind} | {words} |" for kind, words in KINDS.items())
    return _REFUSALS.format(kinds=kinds, sections="\n\n".join(sections))


def load_refusal_codes() -> Collection[RefusalCode]:
    """Return every refusal code, after importing the modules that declare them."""
    for path in sorted(APPLIANCE.rglob("*.py")):
        if "= RefusalCode(" in path.read_text(encoding="utf-8") and path.name != "errors.py":
            importlib.import_module(".".join(path.relative_to(APPLIANCE.parent).with_suffix("").parts))
    return REFUSAL_CODES.values()


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": render_commands,
    "policy.md": render_policy,
    "configuration.md": render_configuration,
    "recipe.md": render_recipe,
    "roles.md": render_roles,
    "actions.md": render_actions,
    "errors.md": render_errors,
    "people-api.md": partial(render_listener, "people"),
    "units-api.md": partial(render_listener, "units"),
    "operations-api.md": partial(render_listener, "operations"),
    "operations-openapi.json": partial(render_document, "operations"),
    "console-addresses.md": partial(render_listener, "console"),
    "console-openapi.json": partial(render_document, "console"),
    "refusals.md": render_refusals,
    "alarms.md": render_alarms,
}
"""Every file of docs/reference by its name."""
