"""Why something was refused, in words: which rule, and what would allow it."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.web.console.core.page import Value
from appliance.web.console.core.rules import find_rule


class Reason(Value):
    """`rule`: the kind of rule that stands against it; `allows`: what would have to be otherwise."""

    text: str
    rule: str
    allows: str


class Refusal(Value):
    status: int
    code: str
    message: str
    meaning: str
    """Of the code, whatever the message names."""
    reasons: tuple[Reason, ...]
    allows: str


CODES: dict[str, tuple[str, str]] = {
    name: tuple(told) for name, told in json.loads(Path(__file__).with_name("codes.json").read_bytes()).items()
}
"""What each error code means, and what to do, in the words of docs/reference/errors.md (scripts/reference)."""

_IN_A_BROWSER: dict[str, str] = {
    "no-session": "Sign in with a passkey, or type appliance console on the machine where your key is.",
    "not-authenticated": "Sign in again: type appliance console. The policy says how long a session lasts.",
    "used-link": "A link works once and for a minute. Type appliance console again.",
    "challenge": "Load the sign-in page again. It asks for an answer within a minute, once.",
    "wrong-signature": "Sign with a passkey of yours that is enrolled for this address. Nothing was recorded.",
    "not-opened": "Open the adapter's page, and there the tabs Changes, Quality and Findings. Nothing was signed.",
    "not-signed": "Open the order's page again and sign it with your passkey.",
    "cross-site": "Open the page again and send the form from there. Nothing was done.",
    "not-found": "Check the address, or look in the list. Things that you may not see are shown as not found.",
    "bad-input": "Correct the address or the form. The message names what is wrong.",
    "too-many": "Wait a moment and load the page again.",
    "too-large": "Send less. The message names the limit.",
    "unavailable": "Try again. If it does not help, ask an administrator to run: appliance doctor.",
    "wrong-host": "Use the address in the setting console_url.",
    "error": "Report it to an administrator, with the service's log.",
}


"""What to do about a code, where the console has another answer than the command line."""


def explain(error: ApplianceError) -> Refusal:
    meaning, action = CODES.get(error.code, ("", ""))
    return Refusal(
        status=error.status,
        code=error.code,
        message=error.message.removesuffix(f": {'; '.join(error.reasons)}") if error.reasons else error.message,
        reasons=explain_reasons(error.reasons),
        meaning=_sentence(meaning),
        allows=_IN_A_BROWSER.get(error.code) or ("" if error.reasons else _sentence(action)),
    )


def explain_reasons(reasons: tuple[str, ...], code: str = "") -> tuple[Reason, ...]:
    """`code`: of the entry or error that has them; it speaks for a reason that no rule of ours gave."""
    return tuple(_explain_reason(text, code) for text in reasons)


def _explain_reason(text: str, code: str) -> Reason:
    meaning, action = CODES.get(code, ("rule", ""))
    kind, allows = find_rule(text) or (meaning, _IN_A_BROWSER.get(code) or _sentence(action))
    return Reason(text=text, rule=kind, allows=allows)


def _sentence(words: str) -> str:
    """Of a table's cell: it begins small and has no end."""
    plain = words.replace("`", "")
    return f"{plain[:1].upper()}{plain[1:]}." if plain else ""
