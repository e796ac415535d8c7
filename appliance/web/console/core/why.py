"""Why something was refused, in words: which rule, and what would allow it."""

from __future__ import annotations

from appliance.errors import ApplianceError
from appliance.web.console.core.page import Value


class Reason(Value):
    """`rule`: the kind of rule that stands against it; `allows`: what would have to be otherwise."""

    text: str
    rule: str
    allows: str


class Refusal(Value):
    status: int
    code: str
    message: str
    reasons: tuple[Reason, ...]
    allows: str


_INVARIANT = "invariant: no policy can loosen it"
_POLICY = "parameter of the policy set in force"
_CONDITION = "condition of an approval"
_STATE = "state of the thing"

_RULES: tuple[tuple[str, str, str], ...] = (
    ("role:", _INVARIANT, "Somebody who has the role does it, or two administrators grant the role."),
    (
        "separation of duties:",
        _INVARIANT,
        "Another person does it: whoever made a thing does not approve it, and some roles are held alone.",
    ),
    ("quorum:", _POLICY, "More reviewers approve, in the fields that policy asks for."),
    ("request:", _POLICY, "The release is requested first: appliance release request."),
    ("witnesses:", _POLICY, "Enough witnesses cosign the log again: appliance witness."),
    ("review ", _STATE, "The reviewer who refused approves, or withdraws the refusal."),
    ("finding", _STATE, "The finding is closed by who may close it."),
    ("adapter ", _STATE, "Another adapter is trained and approved: a revocation is never taken back."),
    ("base ", _STATE, "A base that stands is used."),
    ("dataset ", _STATE, "A dataset that stands is used."),
    ("condition", _CONDITION, "The condition is met, or a new approval has another."),
    ("unit:", _INVARIANT, "The unit is enrolled by two administrators."),
    ("principal:", _STATE, "A person who was not revoked does it."),
    ("order:", _STATE, "The order is signed anew."),
    ("key", _STATE, "It is signed by a key that stands."),
    ("release", _STATE, "The release owner activates an adapter that is approved."),
    ("export", _STATE, "The release owner exports again."),
    ("policy", "site policy", "The site's own policies allow it: appliance policy show."),
    ("site polic", "site policy", "The site's own policies allow it: appliance policy show."),
    ("clock", _INVARIANT, "The clock is right, or two administrators reset it: appliance clock reset."),
)
"""(How a reason begins, the kind of rule, what would allow it). The first that fits counts."""

_CODES: dict[str, str] = {
    "no-session": "Sign in: type appliance console on the machine where your key is.",
    "not-authenticated": "Sign in again: type appliance console. A session lasts as long as policy says.",
    "used-link": "A link works once and for a minute. Type appliance console again.",
    "wrong-signature": "Sign with a passkey of yours that is enrolled for this address. Nothing was recorded.",
    "not-signed": "Open the order's page again and sign it with your passkey.",
    "cross-site": "Open the page again and send the form from there. Nothing was done.",
    "not-found": "Look for it on the page that lists such things. What you may not see is not found either.",
    "bad-input": "Correct the address or the form; the message names what does not fit.",
    "too-many": "Wait a moment and load the page again.",
    "too-large": "Send less; the message names the limit.",
    "unavailable": "Try again. If it stays so, an administrator looks with: appliance doctor.",
    "wrong-host": "Use the address that the console was given.",
    "error": "Report it, with the service's log.",
}


def explain(error: ApplianceError) -> Refusal:
    return Refusal(
        status=error.status,
        code=error.code,
        message=error.message.removesuffix(f": {'; '.join(error.reasons)}") if error.reasons else error.message,
        reasons=explain_reasons(error.reasons),
        allows=_CODES.get(error.code, ""),
    )


def explain_reasons(reasons: tuple[str, ...]) -> tuple[Reason, ...]:
    return tuple(map(_explain_reason, reasons))


def _explain_reason(text: str) -> Reason:
    for begins, rule, allows in _RULES:
        if text.startswith(begins):
            return Reason(text=text, rule=rule, allows=allows)
    return Reason(text=text, rule="rule", allows="")
