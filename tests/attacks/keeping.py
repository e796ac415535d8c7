"""What people do about keys, texts and witnesses at a real service."""

from __future__ import annotations

import base64
import json
from typing import Any, TypeVar

from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.keys import NewKey, RotateKey
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_files import assemble_policy
from appliance.domain.retention.texts import Erase
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.cosignature import cosign, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note
from appliance.formats.log.witness_request import parse_request
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from scripts.kit.appliance import ROOT, Appliance

K = TypeVar("K", bound=NewKey)
WITNESS = "witness.example/w1"


def new_key(site: Appliance, model: type[K], by: str, name: str, **values: Any) -> tuple[K, bytes, Ed25519Signer]:
    """An order that brings in another key for the name, its proof of possession, and the key."""
    key = generate_ed25519()
    spki = base64.b64encode(key.spki).decode()
    proof = site.prove(name, key)
    order = model(principal=name, key=spki, keyid=key.keyid, possession=proof.pae_digest, **values, **site.terms(by))
    return order, encode_envelope(proof), key


def rotate(site: Appliance, name: str, old_until: str) -> dict[str, Any]:
    """The person signs with the new key from now on."""
    order, proof, key = new_key(site, RotateKey, name, name, old_until=old_until)
    answer = site.order(order, possession=proof)
    site.keys[name] = key
    return answer


def two(site: Appliance, order: Order, *texts: Any, **documents: bytes) -> dict[str, Any]:
    """An order of one administrator, endorsed by the other."""
    return site.endorse(site.order(order, *texts, **documents)["order"])


def policy_document(**parameters: Any) -> bytes:
    """The default policy set with other parameters."""
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    files["parameters.json"] = json.dumps({**json.loads(files["parameters.json"]), **parameters}).encode()
    return encode_value(assemble_policy("kept", files))


def adopt(site: Appliance, **parameters: Any) -> None:
    document = policy_document(**parameters)
    two(site, AdoptPolicy(policy=digest_bytes(document), **site.terms("anna")), policy=document)


def watched(site: Appliance, witness: Ed25519Signer, quorum: int = 1) -> None:
    """A policy that names the witness, and asks for its word where `quorum` is 1."""
    adopt(site, witnesses=[witness_vkey_of(WITNESS, witness)], witness_quorum=quorum)


def cosigned(site: Appliance, witness: Ed25519Signer, old: int = 0) -> str:
    """What a witness would answer that believes whatever it is shown."""
    request = parse_request(site.get("/v1/witness-request", "axel", witness=WITNESS, old=old))
    note = parse_note(request.checkpoint)
    line = cosign(note, WITNESS, witness, int(parse_time(site.now()).timestamp()))
    return encode_note(Note(note.text, (*note.signatures, line))).decode()


def hand_in(site: Appliance, note: str) -> dict[str, Any]:
    return dict(site.ask("POST", "/v1/cosignatures", "axel", json={"note": note}))


def erase_order(site: Appliance, commitment: str, by: str = "anna") -> Erase:
    return Erase(commitment=commitment, **site.terms(by))


def files_with(site: Appliance, text: str) -> list[str]:
    """The files below the home that hold these bytes."""
    files = [path for path in site.home.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path.name for path in files if text.encode() in path.read_bytes()]
