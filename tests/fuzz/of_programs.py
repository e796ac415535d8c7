"""The programs of auditors and witnesses, each with one of its files replaced, and the lists of a bundle."""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.formats.log import checkpoint, note, proof
from appliance.formats.signatures import keys
from scripts.packaging import install
from tests.fuzz.inputs import Form
from tests.fuzz.seeds import (
    PUBLIC,
    entry_proofs,
    records,
    small_export,
    staffed,
    trust_of_export,
    trust_of_records,
)
from tests.fuzz.target import (
    Target,
    add,
    beside,
    of_text,
    run_program,
)

# --- the rest ---------------------------------------------------------------------------------------------------------


SEED = bytes.fromhex(PUBLIC["litewitness"]["witnessSeed"])


def _verify(data: bytes) -> object:
    from appliance import verifier

    def words(path: Path) -> list[str]:
        return [str(path), "--trust", beside(path, "trust", trust_of_export()), "--effective-access", "legal"]

    return run_program(verifier.main, data, words)


def _verify_file(option: str, data: bytes) -> object:
    from appliance import verifier

    return run_program(
        verifier.main, data, lambda path: [option, str(path), "--trust", beside(path, "trust", trust_of_records())]
    )


def _verify_under(data: bytes) -> object:
    from appliance import verifier

    return run_program(
        verifier.main, data, lambda path: [beside(path, "log.tar", small_export()), "--trust", str(path)]
    )


add("verifier.main EXPORT", Target(_verify, lambda: [small_export()], "tar"))
add("verifier.main --trust", Target(_verify_under, lambda: [trust_of_export()], "json"))
add("verifier.main --record", Target(partial(_verify_file, "--record"), records, "json"))
add("verifier.main --proof", Target(partial(_verify_file, "--proof"), entry_proofs, "json"))


def _witness(role: str, data: bytes) -> object:
    """Run the witness with one of its files replaced."""
    from appliance import witness

    files = {**_witness_files(), "passphrase": b"pass phrase!\n"}

    def words(path: Path) -> list[str]:
        named = {name: str(path) if name == role else beside(path, name, files[name]) for name in files}
        if role != "state":
            os.unlink(named["state"])
        words = ["cosign", named["request"], "--key", named["key"], "--log", named["log"], "--state", named["state"]]
        words += ["--name", WITNESS, "--passphrase-file", named["passphrase"]]
        return words if role == "state" else [*words, "--first"]

    return run_program(witness.main, data, words)


@cache
def _witness_files() -> dict[str, bytes]:
    """Return a witness's files. Its state has the log's present size, so that it signs the same again."""
    site, private = staffed(), Ed25519PrivateKey.from_private_bytes(SEED)
    opened = note.parse_note(site.checkpoint())
    line = checkpoint.cosign(opened, WITNESS, keys.Ed25519Signer(private), 1_770_000_000)
    return {
        "request": proof.encode_request(proof.WitnessRequest(0, (), site.checkpoint())),
        "key": keys.encode_key_file(
            private, b"pass phrase!", salt=bytes(keys.SALT_BYTES), nonce=bytes(keys.NONCE_BYTES)
        ),
        "log": trust_of_export(),
        "state": note.encode_note(note.Note(opened.text, (*opened.signatures, line))),
    }


def _files_of(role: str) -> list[bytes]:
    return [_witness_files()[role]]


def _witness_state(data: bytes) -> object:
    from appliance import witness

    signer = keys.Ed25519Signer(Ed25519PrivateKey.from_private_bytes(SEED))
    return witness.parse_state(data, witness.Witness(WITNESS, signer, staffed().trust.log_key))


WITNESS = "witness.example/w1"
for _option, _role in (("REQUEST", "request"), ("--key", "key"), ("--log", "log"), ("--state", "state")):
    _form: Form = "json" if _role == "log" else "text"
    add(f"witness.main {_option}", Target(partial(_witness, _role), partial(_files_of, _role), _form))
add("witness.parse_state", Target(_witness_state, partial(_files_of, "state"), "text"))


# --- the bundle -------------------------------------------------------------------------------------------------------

DIGEST = "ab" * 32
of_text(install.parse_sums, [f"{DIGEST}  wheels/requirements.txt\n"], raises=(install.Refused,))
of_text(install.parse_requirements, [f"joserfc==1.4.0 \\\n    --hash=sha256:{DIGEST}\n"], raises=(install.Refused,))
