"""Explanations of errors: what their codes mean, and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

from appliance.errors import ApplianceError, Conflict, Refusal
from appliance.web.console.core.page import PageValue


class Cause(PageValue):
    """The message of a failure, the meaning of its code, and what to do."""

    text: str
    meaning: str
    action: str


class Explained(PageValue):
    """An error as a page shows it."""

    status: int
    code: str
    message: str
    meaning: str
    """Meaning of the code, independent of the message."""
    reasons: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    allows: str
    entry: int | None
    """Index of the entry by which the requested effect is in the log already."""


CODES: dict[str, tuple[str, str]] = {
    name: tuple(texts) for name, texts in json.loads(Path(__file__).with_name("codes.json").read_bytes()).items()
}
"""Meaning and remedy of each error code, in the words of docs/reference/errors.md (scripts/reference)."""

_BROWSER_ACTIONS: dict[str, str] = {
    "no-session": "Sign in with a passkey, or type appliance console on the machine where your key is.",
    "not-authenticated": "Sign in again: type appliance console. The policy says how long a session lasts.",
    "used-link": "A link works once and for a minute. Type appliance console again.",
    "challenge": "Load the sign-in page again. It asks for an answer within a minute, once.",
    "wrong-signature": "Sign with a passkey of yours that is enrolled for this address. Nothing was recorded.",
    "not-opened": "Nothing was signed.",
    "not-signed": "Open the order's page again and sign it with your passkey.",
    "cross-site": "Open the page again and send the form from there. Nothing was done.",
    "not-found": "Check the address, or look in the list. Things that you may not see are shown as not found.",
    "bad-input": "Correct the address or the form. The message names what is wrong.",
    "rate-limited": "Wait a moment and load the page again.",
    "too-large": "Send less. The message names the limit.",
    "unavailable": "Try again. If it does not help, ask an administrator to run: appliance doctor.",
    "wrong-host": "Use the address in the setting console_url.",
    "error": "Report it to an administrator, with the service's log.",
}
"""Remedy by error code, where it differs from the one on the command line."""

_PAGES_OF_COMMANDS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("base list", "dataset list"), ("Bases and datasets", "/data")),
    **dict.fromkeys(("release request", "release resume", "release rollback"), ("Releases", "/releases")),
    **dict.fromkeys(("log-key rotate", "post-quantum add", "rules raise"), ("Sign an order", "/sign")),
    **dict.fromkeys(("identity bind", "key list", "principal enrol"), ("People and units", "/people")),
    "adapter list": ("Adapters", "/adapters"),
    "policy show": ("Policy", "/policy"),
    "run list": ("Runs", "/runs"),
    "witness request": ("Log checkpoint", "/checkpoint"),
}
"""Title and path of the page that shows or does what a command does, by the command that a remedy names."""
_COMMAND = re.compile(r"appliance ([a-z-]+ [a-z-]+)")


def find_pages(remedy: str) -> list[tuple[str, str]]:
    """Return titles and paths of the pages for the commands that a remedy names, because a browser cannot type them."""
    return [_PAGES_OF_COMMANDS[name] for name in _COMMAND.findall(remedy) if name in _PAGES_OF_COMMANDS]


def explain(error: ApplianceError) -> Explained:
    """Return an error as a page shows it."""
    meaning, action = CODES.get(error.code, ("", ""))
    return Explained(
        status=error.status,
        code=error.code,
        message=error.summary,
        reasons=error.reasons,
        refusals=error.refusals,
        meaning=_as_sentence(meaning),
        allows=_BROWSER_ACTIONS.get(error.code) or ("" if error.refusals else _as_sentence(action)),
        entry=error.entry if isinstance(error, Conflict) else None,
    )


def find_cause(text: str, code: str) -> Cause:
    """Return the message of a failure with the meaning of its code and what to do."""
    meaning, action = CODES.get(code, ("", ""))
    return Cause(text=text, meaning=_as_sentence(meaning), action=_BROWSER_ACTIONS.get(code) or _as_sentence(action))


def _as_sentence(words: str) -> str:
    """Return a cell of a table as a sentence, with a capital and a full stop."""
    plain = words.replace("`", "")
    return f"{plain[:1].upper()}{plain[1:]}." if plain else ""
