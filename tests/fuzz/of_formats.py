"""Parsers of `appliance/formats`."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence

from appliance.domain.core.entry import parse_entry
from appliance.errors import ApplianceError
from appliance.formats.artifacts import manifest, rows
from appliance.formats.core import (
    canonical,
    commitment,
    digest,
    fields,
    frame,
    merkle,
    stack,
    timestamp,
    toml,
)
from appliance.formats.core.fields import parse_base64
from appliance.formats.log import backup, checkpoint, export, log_policy, note, proof, seal, trust
from appliance.formats.log import restoration as restorations
from appliance.formats.signatures import bundle, dsse, keys, ml_dsa, webauthn
from tests.fuzz.seeds import (
    CREATION,
    HASH,
    LEAVES,
    NODES,
    NOW,
    OWN,
    PASSKEY,
    PASSKEY_SCOPE,
    POLICY,
    PROOF,
    PUBLIC,
    ROW_PROOF,
    SEAL,
    SIGNED,
    SPKI,
    WITNESSED,
    documents,
    entry_proof,
    entry_proof_terms,
    orders,
    restoration,
    small_export,
    step_back,
)
from tests.fuzz.target import (
    Target,
    add,
    of_bytes,
    of_text,
    of_value,
    read_json,
)
from tests.kit.log_policies import encode_log_policy

# --- formats ----------------------------------------------------------------------------------------------------------

ROWS = [rows.row_digest(HASH, number, b"{}") for number in range(3)]


def _encode_proof(first: int, second: int, hashes: Sequence[bytes]) -> bytes:
    return first.to_bytes(4, "big") + second.to_bytes(4, "big") + b"".join(hashes)


def _two(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")


def _hashes(data: bytes) -> list[bytes]:
    rest = data[8:]
    return [rest[at : at + 32] for at in range(0, len(rest), 32)]


of_bytes(canonical.parse_canonical, [OWN["statement"].encode()])
of_bytes(canonical.parse_json, [OWN["statement"].encode()], "json", "value")
of_value(commitment.parse_commitment, [json.loads(OWN["disclosure"])["commitment"]])
of_bytes(commitment.parse_disclosure, [OWN["disclosure"].encode()])
of_value(commitment.parse_disclosure_value, [json.loads(OWN["disclosure"])])
of_value(digest.parse_digest, [OWN["pae_digest"]])
of_value(fields.parse_object, [{"a": 1, "b": 2}], "value", frozenset({"a", "b"}))
of_value(fields.parse_list, [[1]], "value")
of_value(fields.parse_text, ["a"], "value")
of_value(fields.parse_count, [1], "value")
of_text(stack.parse_stack, ["KeyError serve.py:12 act, run.py:3 <module>; appliance.errors.Tampered"])
of_text(fields.parse_decimal, ["20852163"], "value")
of_value(fields.parse_constant, [1, "a"], "value", "a")
of_value(fields.parse_identifier, ["clauses-2"], "value")
of_value(fields.parse_base64, ["AAECAwQ="], "value")
of_value(fields.parse_base64url, ["-_8"], "value")
of_bytes(
    frame.read_frame,
    [b"\0\0\0\x02{}\0\0\0\0\0\0\0\x01x", parse_base64(OWN["frame"], "frame") if OWN["frame"].endswith("=") else b""],
    "bytes",
    parse=lambda data: frame.read_frame(io.BytesIO(data), max_blob=100),
)
of_bytes(
    merkle.verify_inclusion,
    [_encode_proof(2, 5, merkle.inclusion_proof(2, 5, NODES)), _encode_proof(0, 1, [])],
    "bytes",
    parse=lambda data: merkle.verify_inclusion(LEAVES[2], *_two(data), _hashes(data), merkle.root_of(LEAVES)),
)
of_bytes(
    merkle.verify_consistency,
    [_encode_proof(3, 5, merkle.consistency_proof(3, 5, NODES))],
    "bytes",
    parse=lambda data: merkle.verify_consistency(
        *_two(data), _hashes(data), merkle.root_of(LEAVES[:3]), merkle.root_of(LEAVES)
    ),
)
of_bytes(toml.parse_toml, [b'a = 1\n[b.c]\nd = ["e"]\n'], "toml", "file")
of_value(timestamp.parse_time, ["2026-11-24T15:15:35.123Z"])
of_text(timestamp.parse_moment, ["2026-11-24", "2026-11-24T15:15Z", "3d", "now"], "time", NOW)
of_bytes(
    timestamp.parse_point,
    [b"2026-11-24"],
    "text",
    parse=lambda data: timestamp.parse_point(data.decode("utf-8", "surrogateescape"), "time", NOW, end_of_day=True),
)
of_text(timestamp.parse_end, ["2026-11-24", "3d", "2w"], "time", NOW)
of_bytes(manifest.parse_manifest, [OWN["manifest"].encode(), OWN["private_manifest"].encode()])
of_value(manifest.parse_path, ["a/b-c_d.json"], "path")
of_value(rows.parse_row_proof_value, [ROW_PROOF])
of_bytes(
    rows.verify_row,
    [json.dumps(rows.row_proof_value(rows.prove_row(HASH, ROWS, 1, b"{}"))).encode()],
    parse=lambda data: rows.verify_row(rows.parse_row_proof_value(read_json(data)), len(ROWS), rows.rows_root(ROWS)),
)
of_bytes(backup.parse_backup, [OWN["backup"].encode()])
of_bytes(backup.parse_backup_statement, [dsse.parse_envelope(OWN["backup"].encode()).payload])
of_bytes(backup.open_backup, [OWN["backup"].encode()], "json", [OWN["vkey"]])
of_bytes(backup.parse_index, [OWN["backup_index"].encode()])
of_value(backup.parse_recipient, ["age1" + "q" * 58])
of_value(backup.parse_object_name, ["ab" * 32 + "-" + "ab" * 8, "ab" * 32])
of_value(backup.parse_backup_name, ["20261129T013000Z"])
of_text(checkpoint.parse_checkpoint, [note.parse_note(OWN["checkpoint"].encode()).text])
of_bytes(checkpoint.open_checkpoint, [OWN["checkpoint"].encode()], "text", OWN["vkey"])
of_text(checkpoint.parse_witness_vkey, list(WITNESSED["witnesses"]))
of_bytes(
    checkpoint.verify_cosignature,
    [WITNESSED["note"].encode()],
    "text",
    parse=lambda data: checkpoint.verify_cosignature(note.parse_note(data), WITNESSED["witnesses"][0]),
)
of_bytes(log_policy.parse_log_policy, [encode_log_policy(POLICY), PUBLIC["policy"].encode()], "text")
of_bytes(log_policy.open_witnessed, [WITNESSED["note"].encode()], "text", POLICY)
of_bytes(note.parse_note, [OWN["checkpoint"].encode(), WITNESSED["note"].encode()], "text")
of_bytes(
    note.verify_note,
    [OWN["checkpoint"].encode()],
    "text",
    parse=lambda data: note.verify_note(note.parse_note(data), OWN["vkey"]),
)
of_text(note.parse_vkey, [OWN["vkey"], WITNESSED["log"]])
of_bytes(proof.parse_proof, [PROOF], "text")
of_bytes(
    proof.verify_proof,
    lambda: [entry_proof()],
    "text",
    parse=lambda data: proof.verify_proof(data, *entry_proof_terms()),
)
of_bytes(
    proof.parse_hashes,
    [b"A" * 43 + b"="],
    "text",
    parse=lambda data: proof.parse_hashes(data.decode("utf-8", "surrogateescape").split("\n"), "proof"),
)
of_bytes(proof.parse_request, [PUBLIC["litewitness"]["accepted"][2].encode()], "text")
of_bytes(restorations.parse_restoration, lambda: [restoration()[0]])
of_bytes(
    restorations.verify_restoration,
    lambda: [restoration()[0]],
    parse=lambda data: restorations.verify_restoration(
        restorations.parse_restoration(data), [restoration()[1]], restoration()[2]
    ),
)
of_bytes(
    restorations.verify_orders,
    lambda: [restoration()[0]],
    parse=lambda data: restorations.verify_orders(
        restorations.parse_restoration(data), restoration()[1], restoration()[2]
    ),
)
of_bytes(restorations.parse_step_back, lambda: [step_back()[0]])
of_bytes(
    restorations.verify_step_back,
    lambda: [step_back()[0]],
    parse=lambda data: restorations.verify_step_back(
        restorations.parse_step_back(data), [step_back()[1]], step_back()[2]
    ),
)
of_text(seal.parse_seal, [SEAL])
of_bytes(dsse.parse_pae, lambda: [SIGNED.pae], "text")
of_bytes(trust.parse_trust, [OWN["trust"].encode()])
of_bytes(bundle.verify_model, [OWN["bundle"].encode()], "json", SPKI["p256"], OWN["bundle_files"])
of_bytes(dsse.parse_envelope, lambda: [OWN["envelope"].encode(), *documents("order")])
of_bytes(
    dsse.verify_envelope,
    lambda: [OWN["envelope"].encode(), OWN["passkey_envelope"].encode()],
    parse=lambda data: dsse.verify_envelope(dsse.parse_envelope(data), SPKI["p256"], PASSKEY_SCOPE),
)
of_bytes(dsse.parse_statement, lambda: [OWN["statement"].encode(), *orders()[:4]])
of_bytes(keys.parse_spki, list(SPKI.values()), "bytes")
of_bytes(
    keys.verify_signature,
    [SIGNED.signature.sig],
    "bytes",
    parse=lambda data: keys.verify_signature(SPKI["ed25519"], SIGNED.pae, data),
)
of_bytes(
    ml_dsa.verify_ml_dsa,
    lambda: [ml_dsa.ml_dsa_signer(HASH).sign(b"data")],
    "bytes",
    parse=lambda data: ml_dsa.verify_ml_dsa(ml_dsa.ml_dsa_signer(HASH).spki, b"data", data),
)
of_bytes(keys.load_spki_pem, [keys.encode_spki_pem(spki) for spki in SPKI.values()], "text")
of_bytes(keys.parse_key_file, [OWN["key_file"].encode()], "text", b"passphrase")
of_bytes(keys.parse_key_file_spki, [OWN["key_file"].encode()], "text")
of_bytes(webauthn.parse_authenticator_data, [CREATION], "bytes")
of_bytes(webauthn.parse_cose, [CREATION[CREATION.index(b"\xa5\x01\x02\x03\x26") :][:77]], "bytes")
of_text(webauthn.parse_rp_id, ["appliance.example"])
of_text(webauthn.parse_origin, ["https://appliance.example:8330"], "appliance.example")
of_bytes(webauthn.parse_assertion, [PASSKEY.signature.sig], "json")
of_bytes(
    webauthn.verify_assertion,
    [PASSKEY.signature.sig],
    "json",
    parse=lambda data: webauthn.verify_assertion(SPKI["p256"], PASSKEY.pae, data, PASSKEY_SCOPE),
)


def _read_export(data: bytes) -> object:
    """Read all of an export, and each document that it names."""
    with export.ParsedExport(io.BytesIO(data)) as read:
        lines = list(read.entries())
        names = [name for line in lines for name in _documents_of(line)]
        return len(lines), [read.document(name) for name in names], list(read.disclosures())


def _documents_of(line: bytes) -> Iterable[str]:
    with contextlib.suppress(ApplianceError):
        return list(parse_entry(line).documents.values())
    return ()


of_bytes(export.read_removed, [b'{"removed":"sha256:' + b"0" * 64 + b'"}'])
add("formats.log.export.ParsedExport", Target(_read_export, lambda: [small_export()], "tar"))
