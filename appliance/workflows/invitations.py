"""Invitations of people who have no key: an address's secret finds one, and the proof of a passkey is recorded once."""

from __future__ import annotations

import base64

from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.records.people import Invitation
from appliance.domain.core.state import State
from appliance.domain.governance.invitations import InvitationAccepted, refuse_invited_passkey
from appliance.domain.governance.passkeys import make_passkey_scope
from appliance.errors import BadInput, Denied, NotAuthenticated, NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import Envelope, encode_envelope, verify_envelope
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.core.record import append


def find_invitation(context: LedgerContext, secret: bytes) -> Invitation:
    """Return the open invitation with this secret.

    Raises:
        NotAuthenticated: There is none, or it was used or withdrawn, or has ended. The error does not say which.
    """
    row = look_up(context, secret)
    if row is None or row.accepted is not None or row.withdrawn is not None:
        raise _not_open()
    return row


def look_up(context: LedgerContext, secret: bytes) -> Invitation | None:
    """Return the invitation with this secret that has not ended and whose person is not enrolled, or None."""
    context.refresh()
    state, digest = context.ledger.state, digest_bytes(secret)
    now = context.now(state)
    found = (row for row in state.invitations.values() if row.secret == digest and row.name not in state.principals)
    return next((row for row in found if now < row.until), None)


def _not_open() -> NotAuthenticated:
    return NotAuthenticated("invitation: expected the secret of an open one, got another")


def find_accepted(state: State, keyid: str) -> Invitation | None:
    """Return the accepted invitation with this passkey, or None."""
    return next((row for row in state.invitations.values() if row.keyid == keyid), None)


def read_proof(context: LedgerContext, keyid: str) -> bytes:
    """Return the proof of an invited person's passkey.

    Raises:
        NotFound: No accepted invitation has this passkey.
    """
    row = find_accepted(context.ledger.state, keyid)
    if row is None or row.accepted is None:
        raise NotFound(f"proof: expected the passkey of an accepted invitation, got {keyid:.80}")
    return context.ledger.documents_of(row.accepted)["possession"]


def accept_invitation(
    context: LedgerContext, secret: bytes, proof: Envelope, origins: tuple[str, ...], source: str
) -> Invitation:
    """Record the proof of the invited person's passkey, and return the invitation.

    The rules of the entry accept one passkey, also of two that arrive at once. The same passkey again changes nothing.

    Raises:
        NotAuthenticated: The invitation is not open.
        BadInput: The proof is for another name, or for other origins than these.
        Tampered: The passkey did not sign the proof.
        Denied: The policy does not allow the passkey, or the name was given to another person.
    """
    row = look_up(context, secret)
    statement = parse_credential(PasskeyPossession, proof.payload)
    if row is None or row.withdrawn is not None or row.keyid not in (None, statement.keyid):
        raise _not_open()
    if (statement.signer, statement.origins) != (row.name, origins):
        got = f"got one of {statement.signer} at {', '.join(statement.origins)}"
        raise BadInput(f"proof of a passkey: expected one of {row.name} at {', '.join(origins)}, {got}")
    verify_envelope(proof, base64.b64decode(statement.key), make_passkey_scope(statement))
    if row.accepted is not None:
        return row
    state = context.ledger.state
    if reasons := refuse_invited_passkey(state, row, statement):
        raise Denied(f"passkey of {row.name}", refusals=reasons)
    body, documents = (
        InvitationAccepted(principal=row.name, keyid=statement.keyid),
        {"possession": encode_envelope(proof)},
    )
    try:
        append(context, body, source=source, documents=documents)
    except Denied:
        # Another passkey was accepted first, or the invitation ended or was withdrawn meanwhile.
        if look_up(context, secret) == row:
            raise
        raise _not_open() from None
    return row
