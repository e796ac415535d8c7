"""What a person or unit can do here, by role: the links of the first page."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.domain.governance.passkeys import passkeys_of
from appliance.web.console.home.tasks import Asked, Task

_NO_BASE = Task(
    kind="Import a base",
    text="There is none yet. On the command line: appliance base import FILE --name NAME --licence LICENCE",
    path="/data",
)
_PASSKEY = Task(
    kind="Make a passkey",
    text="Without one, you can read here. With one, you can sign orders too.",
    path="/passkeys",
)
_BY_ROLE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "operator": (
        ("Import a dataset", "A file of rows to train on, up to 200 MB", "/sign/import-dataset"),
        ("Order a run", "Choose a base and a dataset, and see the plan before you sign", "/sign/train"),
        ("Follow the runs", "The queue, and how far each run is", "/runs"),
    ),
    "validator": (
        ("Import a validation set", "Rows that adapters are judged on", "/sign/import-validation-set"),
        ("Look at adapters", "How each did on each set", "/adapters"),
    ),
    "reviewer": (
        ("Review", "Adapters that wait for a decision", "/reviews"),
        ("Look at adapters", "Every sealed adapter, with its decisions", "/adapters"),
    ),
    "release-owner": (
        ("Release", "What may be released, and what the rest still lacks", "/candidates"),
        ("Look at releases", "What answers each task, and until when", "/releases"),
    ),
    "administrator": (
        ("Enrol a person or unit", "With the proof of their key; a second administrator endorses it", "/sign/enroll"),
        ("Look at people", "Names, roles, keys and passkeys", "/people"),
        ("Change the policy", "Compare and try a policy set before you sign it", "/policy"),
        ("Check the service", "Its health, its storage, and what needs repair", "/health"),
    ),
    "auditor": (
        ("Search the log", "Every entry, with its documents and its proof", "/log"),
        ("Ask who could load what", "What a unit could load at a time, and who approved it", "/could-load"),
        ("Look at the checkpoint", "The signed state of the log, and its witnesses", "/checkpoint"),
    ),
    "unit": (
        ("Ask", "Send a text to a task that is released to you", "/ask"),
        ("Look at requests", "What was asked, and how each request ended", "/requests"),
        ("Look at limits", "What is left of your limits today", "/usage"),
    ),
}


def starts_of(asked: Asked) -> Iterator[Task]:
    """Each address once, also of a person with several roles."""
    viewer, state = asked.viewer, asked.state
    if viewer.has("operator") and not any(base.revoked is None for base in state.bases.values()):
        yield _NO_BASE
    rows = (row for kind in viewer.kinds for row in _BY_ROLE.get(kind, ()))
    for kind, text, path in {row[2]: row for row in rows}.values():
        yield Task(kind=kind, text=text, path=path)
    if not viewer.is_unit and not passkeys_of(state, viewer.name):
        yield _PASSKEY
