"""Actions of people on keys, texts and witnesses at a real service."""

from __future__ import annotations

import base64
import json
from typing import Any, TypeVar

from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.keys import NewKey, RotateKey
from appliance.domain.governance.policies import AdoptPolicy, assemble_policy
from appliance.domain.retention import Erase
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import cosign, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note
from appliance.formats.log.proof import parse_request
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from scripts.kit.appliance import ROOT, Appliance

K = TypeVar("K", bound=NewKey)
WITNESS = "witness.example/w1"


def new_key(site: Appliance, model: type[K], by: str, name: str, **values: Any) -> tuple[K, bytes, Ed25519Signer]:
    """Return an order that enrols another key for the name, its proof of possession, and the key."""
    key = generate_ed25519()
    spki = base64.b64encode(key.spki).decode()
    proof = site.prove(name, key)
    order = model(principal=name, key=spki, keyid=key.keyid, possession=proof.pae_digest, **values, **site.terms(by))
    return order, encode_envelope(proof), key


def rotate(site: Appliance, name: str, old_until: str) -> dict[str, Any]:
    """Rotate a person's key, with which the site signs from then on."""
    order, proof, key = new_key(site, RotateKey, name, name, old_until=old_until)
    answer = site.order(order, possession=proof)
    site.keys[name] = key
    return answer


def two(site: Appliance, order: Order, *texts: Any, **documents: bytes) -> dict[str, Any]:
    """Submit an order of one administrator, and countersign it as the other."""
    return site.countersign(site.order(order, *texts, **documents)["order"])


def policy_document(**parameters: Any) -> bytes:
    """Return the default policy set with other parameters."""
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    files["parameters.json"] = json.dumps({**json.loads(files["parameters.json"]), **parameters}).encode()
    return encode_value(assemble_policy("kept", files))


def adopt(site: Appliance, **parameters: Any) -> None:
    document = policy_document(**parameters)
    two(site, AdoptPolicy(policy=digest_bytes(document), **site.terms("anna")), policy=document)


def watched(site: Appliance, witness: Ed25519Signer, quorum: int = 1) -> None:
    """Adopt a policy that names the witness, and requires its cosignature if `quorum` is 1."""
    adopt(site, witnesses=[witness_vkey_of(WITNESS, witness)], witness_quorum=quorum)


def cosigned(site: Appliance, witness: Ed25519Signer, old: int = 0) -> str:
    """Return the answer of a witness that cosigns whatever it is shown."""
    request = parse_request(site.get("/v1/witness-request", "axel", witness=WITNESS, old=old))
    note = parse_note(request.checkpoint)
    line = cosign(note, WITNESS, witness, int(parse_time(site.now()).timestamp()))
    return encode_note(Note(note.text, (*note.signatures, line))).decode()


def submit_cosignature(site: Appliance, note: str) -> dict[str, Any]:
    return dict(site.ask("POST", "/v1/cosignatures", "axel", json={"note": note}))


def erase_order(site: Appliance, commitment: str, by: str = "anna") -> Erase:
    return Erase(commitment=commitment, **site.terms(by))


def files_with(site: Appliance, text: str) -> list[str]:
    """List the files below the home that contain this text."""
    files = [path for path in site.home.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path.name for path in files if text.encode() in path.read_bytes()]
