"""The record that goes out with an answer: the entry that ended the request, and its proof."""

from __future__ import annotations

from appliance.domain.queries.response import ResponseRecord
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import Appended


def record_response(
    ledger: Ledger, finished: Appended, prompt_salt: bytes, answer_salt: bytes, text: str | None, added: bytes | None
) -> ResponseRecord:
    """`added`: the salt of the instruction that was put in, if one was.

    Under the very checkpoint that made the entry durable: nothing is signed again, and no lock is waited for.
    """
    size = parse_checkpoint(parse_note(finished.checkpoint).text).size
    index = finished.entry.index
    proof = Proof(index, tuple(ledger.inclusion_proof(index, size)), finished.checkpoint)
    return ResponseRecord(
        entry=finished.entry_bytes.decode(),
        proof=encode_proof(proof).decode(),
        prompt_salt=encode_base64(prompt_salt),
        answer_salt=encode_base64(answer_salt),
        instruction_salt=None if added is None else encode_base64(added),
        text=text,
    )
