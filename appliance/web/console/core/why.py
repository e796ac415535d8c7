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
    ("role:", _INVARIANT, "Ask somebody who has the role, or have two administrators grant it to you."),
    (
        "separation of duties:",
        _INVARIANT,
        "Ask another person: who made a thing cannot approve it, and some roles exclude others.",
    ),
    ("opened,", _STATE, "Open the tabs Changes, Quality and Findings of the adapter's page, then decide again."),
    ("opened:", _STATE, "Decide again from the adapter's page."),
    ("quorum:", _POLICY, "More reviewers have to approve, in the fields that the policy asks for."),
    ("request:", _POLICY, "Request the release first: appliance release request."),
    ("witnesses:", _POLICY, "Enough witnesses have to cosign the log again: appliance witness."),
    ("review ", _STATE, "The reviewer who rejected it has to approve it, or withdraw the rejection."),
    ("finding", _STATE, "A reviewer of the finding's field has to close it."),
    ("adapter ", _STATE, "Train and approve another adapter: a revocation cannot be undone."),
    ("base ", _STATE, "Use a base that is not revoked."),
    ("dataset ", _STATE, "Use a dataset that is not revoked."),
    ("condition", _CONDITION, "Meet the condition, or get a new approval with another one."),
    ("unit:", _INVARIANT, "Two administrators have to enrol the unit."),
    ("principal:", _STATE, "Ask a person who is not revoked."),
    ("order:", _STATE, "Sign the order again."),
    ("key", _STATE, "Sign with a key that is valid now."),
    ("release", _STATE, "The release owner has to activate an approved adapter."),
    ("export", _STATE, "The release owner has to export it again."),
    ("policy", "site policy", "The site's own policies have to allow it: appliance policy show."),
    ("site polic", "site policy", "The site's own policies have to allow it: appliance policy show."),
    ("clock", _INVARIANT, "Correct the clock, or have two administrators reset it: appliance clock reset."),
)
"""(How a reason begins, the kind of rule, what would allow it). The first that fits counts."""

_CODES: dict[str, str] = {
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
