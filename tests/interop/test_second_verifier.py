"""A verifier written from the format pages alone agrees with the appliance, and finds what the rules forbid."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.domain.core.decisions import Conditions
from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import Order
from appliance.domain.evaluation.items import encode_items
from appliance.domain.governance import countersignature
from appliance.domain.governance.countersignature import OrderPending
from appliance.domain.governance.identities import BindIdentity, SessionIdentity
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.governance.sessions import SessionClosed, SessionOpened
from appliance.domain.releases.activations import Activate, ReleaseActivated
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.releases.requests import ReleaseRequested
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.releases.suspensions import ReleaseResumed
from appliance.domain.retention import LogArchived, list_bits
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.export import encode_removed
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from appliance.formats.signatures.ml_dsa import generate_ml_dsa
from scripts.kit.log_builder import ISSUER, ORIGIN, LogBuilder, policy_set, stage
from tests.domain.audit.test_archives import verify
from tests.domain.evaluation.test_rules import AGAINST_RELEASED, ALIKE, BETTER, GATES
from tests.domain.releases.test_emergencies import lapsed
from tests.interop import second_verifier
from tests.interop.second import formats
from tests.interop.second.archives import ArchivedLog
from tests.interop.second.effects import check_bundle
from tests.interop.second.formats import Broken, Envelope, Note, Tree, Vkey, canonical, commitment, parse, sha, unbase64
from tests.interop.second.statistics import Stream
from tests.interop.second.verdicts import Evidence, compute
from tests.interop.second_verifier import verify_export
from tests.kit.archived_log import archive_of, archive_order, archived, cosign, log_bytes, old_site, prepare
from tests.kit.identity_provider import Provider
from tests.kit.restored import lose, restore, root_at
from tests.verifier.test_program import export_of

VECTORS = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


APPLIANCE, TRANSPARENCY = vectors("appliance"), vectors("transparency")
KEYS = {name: base64.b64decode(one["spki"]) for name, one in APPLIANCE["keys"].items()}


# Vectors.


def test_canonical_json_is_that_of_the_vectors() -> None:
    told = vectors("rfc8785")
    for case in told["cases"]:
        assert canonical(json.loads(case["json"])).hex() == case["canonical"], case["name"]
    for refused in told["refused"]:
        with pytest.raises(Broken):
            parse(refused.encode())


def test_the_tree_is_that_of_the_vectors() -> None:
    told = vectors("rfc6962")
    leaves = [formats.leaf(bytes.fromhex(one)) for one in told["leaves"]]
    roots = [bytes.fromhex(one) for one in told["roots"]]
    assert [Tree(leaves[:size]).root() for size in range(len(leaves) + 1)] == roots
    for one in told["inclusion"]:
        proof = [bytes.fromhex(step) for step in one["proof"]]
        formats.check_inclusion(one["index"], one["size"], leaves[one["index"]], proof, roots[one["size"]])
        with pytest.raises(Broken):
            formats.check_inclusion(one["index"], one["size"], bytes(32), proof, roots[one["size"]])
    for one in told["consistency"]:
        old, new = one["old"], one["new"]
        formats.check_consistency(old, new, [bytes.fromhex(step) for step in one["proof"]], roots[old], roots[new])


def test_envelopes_are_those_of_the_vectors() -> None:
    for name, spki in KEYS.items():
        formats.load_key(spki)
        assert sha(spki) == APPLIANCE["keys"][name]["keyid"]
    envelope = Envelope(APPLIANCE["envelope"].encode())
    envelope.check(KEYS["ed25519"])
    assert (envelope.identity, envelope.payload.decode()) == (APPLIANCE["pae_digest"], APPLIANCE["statement"])
    signed = Envelope(APPLIANCE["passkey_envelope"].encode())
    signed.check(KEYS["p256"], APPLIANCE["passkey"])
    for wrong in ({"rp_id": "other.example"}, {"origins": ["https://other.example"]}, {"backup_eligible": True}):
        with pytest.raises(Broken):
            signed.check(KEYS["p256"], APPLIANCE["passkey"] | wrong)
    with pytest.raises(Broken):
        signed.check(KEYS["p256"])
    told = vectors("dsse")
    assert formats.pae(told["payloadType"], told["payload"].encode()).decode() == told["pae"]
    point = EllipticCurvePublicNumbers(int(told["x"]), int(told["y"]), SECP256R1()).public_key()
    raw = base64.b64decode(told["signature"])
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    formats.verify(point.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), der, told["pae"].encode())
    said = vectors("in_toto")
    subjects = [{"digest": {"sha256": one["digest"][7:]}, "name": one["name"]} for one in said["subjects"]]
    statement = {"_type": "https://in-toto.io/Statement/v1", "predicate": said["predicate"], "subject": subjects}
    assert canonical(statement | {"predicateType": said["predicateType"]}).decode() == said["statement"]


@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_a_point_of_small_order_is_no_key(point: str) -> None:
    with pytest.raises(Broken):
        formats.load_key(bytes.fromhex("302a300506032b6570032100" + point))


def test_manifests_rows_and_texts_are_those_of_the_vectors() -> None:
    assert sha(APPLIANCE["manifest"].encode()) == APPLIANCE["manifest_digest"]
    assert parse(APPLIANCE["private_manifest"].encode())["privacy"] == {"delta": "0.0001", "epsilon": "2.999954"}
    check_bundle(APPLIANCE["bundle"].encode(), APPLIANCE["bundle_files"], KEYS["p256"])
    with pytest.raises(Broken):
        check_bundle(APPLIANCE["bundle"].encode(), {"a": "sha256:" + "0" * 64}, KEYS["p256"])
    with pytest.raises(Broken):  # another tool's layout
        check_bundle(vectors("model_signing")["bundle"].encode(), {}, KEYS["p256"])
    told = parse(APPLIANCE["disclosure"].encode())
    assert commitment(unbase64(told["salt"]), told["text"]) == told["commitment"]
    rows = APPLIANCE["rows"]
    digests = [
        hmac.new(bytes.fromhex(key), b"appliance/row-digest/v1\0" + text.encode(), hashlib.sha256).digest()
        for key, text in zip(rows["keys"], rows["texts"], strict=True)
    ]
    assert [one.hex() for one in digests] == rows["digests"]
    assert Tree([formats.leaf(one) for one in digests]).root().hex() == rows["root"]


def test_private_rows_are_drawn_as_in_the_vectors() -> None:
    told = APPLIANCE["private_training"]
    secret, purpose = bytes.fromhex(told["secret"]), b"appliance/private-training/v1/rows/1"
    key = HKDF(SHA256(), 32, None, purpose).derive(secret)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(32))
    assert stream.hex() == told["rows_1"]
    assert sha(b"appliance/private-training/v1/secret/r-000001\0" + secret) == told["bound"]


def test_notes_and_witnesses_are_those_of_the_vectors() -> None:
    key = Vkey(APPLIANCE["vkey"])
    note = Note(APPLIANCE["checkpoint"].encode())
    assert note.times(key) == [0] and note.checkpoint()[:2] == ("appliance.example/log", 7)
    assert Vkey(parse(APPLIANCE["trust"].rstrip("\n").encode())["logKey"]).keyid == key.keyid
    told = vectors("signed_note")
    go = Note(told["go"]["note"].encode())
    assert go.times(Vkey(told["go"]["vkey"])) == [0] and go.text.decode() == told["go"]["text"]
    assert Note(told["poem"].encode()).text.endswith(b"\n\xc3\xa8d subito sera.\n") or "\n\n" in told["poem"]
    assert Note(told["checkpoint"].encode()).checkpoint()[1] == 20_852_163
    for wrong in told["badVkeys"]:
        with pytest.raises(Broken):
            Vkey(wrong)
    public = TRANSPARENCY["witnessed"]
    seen = Note(public["note"].encode())
    assert seen.times(*map(Vkey, public["witnesses"])) == [public["time_s"]] * 4
    changed = Note(public["note"].replace("1432088532", "1432088533").encode())
    with pytest.raises(Broken):
        changed.times(*map(Vkey, public["witnesses"]))


def _request(text: str) -> tuple[int, list[bytes], Note]:
    head, _, note = text.partition("\n\n")
    old, *proof = head.split("\n")
    return int(old.removeprefix("old ")), [unbase64(one) for one in proof], Note(note.encode())


def test_proofs_of_a_public_witness_s_tests_are_evaluated_alike() -> None:
    told = TRANSPARENCY["litewitness"]
    data = b"\1" + bytes.fromhex(told["logKey"])
    keyid = hashlib.sha256(told["origin"].encode() + b"\n" + data).hexdigest()[:8]
    key = Vkey(f"{told['origin']}+{keyid}+{base64.b64encode(data).decode()}")
    roots = {0: b""}
    for text in told["accepted"]:
        old, proof, note = _request(text)
        _, size, root = note.checkpoint()
        assert note.times(key) == [0]
        formats.check_consistency(old, size, proof, roots[old], root)
        roots[size] = root
    for text in told["wrongProofs"]:
        old, proof, note = _request(text)
        with pytest.raises(Broken):
            formats.check_consistency(old, note.checkpoint()[1], proof, roots[old], note.checkpoint()[2])
    with pytest.raises(Broken):
        _request(told["wrongSignature"])[2].times(key)
    for head in TRANSPARENCY["badProofHeads"]:
        with pytest.raises(Broken):
            formats.read_proof(head)
    assert formats.read_proof("c2sp.org/tlog-proof@v1\nextra AAAA\nindex 3\n\n") == (3, [])


def test_a_verdict_is_computed_again_byte_for_byte() -> None:
    told = vectors("evaluation")
    evidence = Evidence({"held-out": told["items"].encode()}, {("released", "held-out"): told["released"].encode()})
    evidence.before["held-out"] = 1
    assert compute(told["gates"].encode(), evidence).decode() == told["verdict"]


def test_the_generator_is_that_of_the_page() -> None:
    page = (formats.PAGES / "evaluation.md").read_text().split("```json generator\n")[1].split("```")[0]
    told = json.loads(page)
    stream = Stream(told["seed"], told["purpose"], told["resample"])
    assert stream.indices(8, told["bound"]) == told["indices"]
    assert [stream.bits(16) >> place & 1 for place in range(16)] == told["bits"]


# Logs.


def findings(site: LogBuilder, export: bytes | None = None) -> list[str]:
    return verify_export(export_of(site) if export is None else export, encode_trust(site.trust), site.items)


@pytest.mark.parametrize("name", ["initialized", "kept", "replayed", "decided"])
def test_a_log_of_each_kind_is_verified(name: str) -> None:
    assert findings(stage(name)) == []


@pytest.mark.thorough
def test_they_agree_on_a_log_with_archives_and_after_them() -> None:
    """With and without the archive's bytes: the state continues, texts and documents leave, and another one follows."""
    site = old_site()
    order, prepared = prepare(site, records=("requests",))
    archive = archive_of(site)
    archived(site, order, prepared.removed)
    site.grant("olga", "reviewer:cost")
    cosign(site)
    for given in ((), (archive,)):
        assert findings(site) == verify_export(export_of(site), encode_trust(site.trust), site.items, given) == []
    second, more = prepare(site)
    another = archive_of(site)
    archived(site, second, more.removed)
    site.hold("unit:legal")
    export, trust = export_of(site), encode_trust(site.trust)
    for given in ((), (another,), (archive, another)):
        assert verify_export(export, trust, site.items, given) == []
    assert verify(site, checkpoint=site.checkpoint()).findings == ()


def test_what_is_not_checked_of_an_archive_is_said() -> None:
    """The digest of the state is never compared, and the rest of the comparisons only with the archive's bytes."""
    site = old_site()
    assert told(site) == ([], [])
    order, prepared = prepare(site, records=("requests",))
    archive = archive_of(site)
    entry = archived(site, order, prepared.removed)
    digest = f"entry {entry.index}: the digest of the state after {order.up_to} entries"
    findings, unchecked = told(site)
    assert findings == [] and [one.partition(",")[0] for one in unchecked] == [
        digest,
        f"entry {entry.index}: the classes and legal holds of {order.count} removed entries",
    ]
    findings, unchecked = told(site, archive)
    assert findings == [] and [one.partition(",")[0] for one in unchecked] == [digest]


def told(site: LogBuilder, *archives: bytes) -> tuple[list[str], list[str]]:
    unchecked: list[str] = []
    found = verify_export(export_of(site), encode_trust(site.trust), site.items, archives, unchecked)
    return found, unchecked


def test_the_program_prints_what_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = old_site()
    order, prepared = prepare(site)
    archive = archive_of(site)
    archived(site, order, prepared.removed)
    files = {"export": export_of(site), "trust": encode_trust(site.trust), "archive": archive}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    words = ["second_verifier.py", str(tmp_path / "export"), "--trust", str(tmp_path / "trust")]
    for more, count in (([], 2), (["--archive", str(tmp_path / "archive")], 1)):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        assert second_verifier.main() == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line.startswith("not checked: entry") for line in printed] == [True] * count + [False]
        assert printed[-1].startswith("verified, without: ") and printed[-1].endswith("what is not checked")


@pytest.mark.thorough
def test_a_removed_entry_that_left_a_trace_in_the_state_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the archive the log is replayed with and without the removed entries. Here a record has an effect."""
    site = old_site()
    order, prepared = prepare(site)
    archive = archive_of(site)
    archived(site, order, prepared.removed)
    on_request_finished = ArchivedLog.on_request_finished

    def leave_trace(log: ArchivedLog, row: Any) -> None:
        on_request_finished(log, row)
        log.names.add("mallory")

    monkeypatch.setattr(ArchivedLog, "on_request_finished", leave_trace)
    assert told(site)[0] == []
    assert told(site, archive)[0] == ["archives: the state is the same without the removed entries"]


def test_a_removed_entry_that_no_archive_lists_is_found() -> None:
    site = old_site()
    index = next(n for n, data in enumerate(site.entries) if parse(data)["type"] == "request.refused")
    site.entries[index] = encode_removed(hash_leaf(site.entries[index]))
    assert "archives: a valid archive lists each removed entry" in findings(site)


def test_an_archive_that_no_entry_names_is_found() -> None:
    site = old_site()
    archive = archive_of(site)
    found = verify_export(export_of(site), encode_trust(site.trust), site.items, (archive,))
    assert found == ["archives: an entry names each given archive"]


def _withheld(bits: int, site: LogBuilder) -> int:
    """Without the opening of a request."""
    return bits & ~(
        1 << next(n for n in list_bits(bits.to_bytes(64, "little")) if of_type(site, n, "request.admitted"))
    )


def _powers(bits: int, site: LogBuilder) -> int:
    """With an entry that gives a power."""
    return bits | 1 << next(n for n in range(1, len(site.entries)) if of_type(site, n, "principal.enrolled"))


def of_type(site: LogBuilder, index: int, name: str) -> bool:
    return bool(parse(site.entries[index])["type"] == name)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("change", "fields", "holds", "message"),
    [
        (None, {}, True, "archive: no hold"),
        (None, {"last": "2026-01-02T00:00:00.000Z"}, False, "archive: last"),
        (_withheld, {}, False, "archive: whole records"),
        (_powers, {}, False, "archive: classes"),
    ],
)
def test_they_agree_that_an_archive_removes_records_alone(
    change: Callable[[int, LogBuilder], int] | None, fields: dict[str, Any], holds: bool, message: str
) -> None:
    site = old_site()
    _, prepared = prepare(site)
    if holds:
        site.hold("unit:legal")
        cosign(site)
    bits = int.from_bytes(prepared.removed, "little")
    bits = bits if change is None else change(bits, site)
    removed = bits.to_bytes(64, "little").rstrip(b"\0")
    fields = {"removed": sha(removed), "count": bits.bit_count(), "size": log_bytes(site).size} | fields
    entry = site.two(LogArchived(policy=site.in_force), archive_order(site, prepared, **fields), {"removed": removed})
    site.disclosures = [one for one in site.disclosures if one.commitment in site.state.texts]
    assert [one for one in findings(site) if one.startswith("entry")] == [f"entry {entry.index}: {message}"]
    told = verify(site, with_archives=True, checkpoint=site.checkpoint()).findings
    assert {one.index for one in told} == {entry.index}


@pytest.mark.parametrize("is_first", [True, False])
def test_they_agree_on_a_log_with_post_quantum_keys(is_first: bool) -> None:
    """From its first entry on, or added before an adapter is sealed; a note or an adapter without the second signature
    is found."""
    site = LogBuilder(post_quantum=True) if is_first else stage("trained")
    if not is_first:
        site.add_post_quantum_keys()
        site.seal("r-000001")
    key = generate_ml_dsa()
    vkey = vkey_of(ORIGIN, key)
    order = site.order(RotateLogKey, "anna", log_key=vkey, old_until=add_seconds(site.now, 3_600))
    site.two(LogKeyRotated(policy=site.in_force), order)
    site.log_signers = {**site.log_signers, vkey: key}
    site.rotate_log_key()
    assert findings(site) == []
    forged = site.fork()
    forged.log_signers = {name: one for name, one in site.log_signers.items() if name != vkey}
    assert findings(forged) == ["checkpoint: a line of each key of the log that is valid"]


def identified(site: LogBuilder, **fields: Any) -> tuple[SessionOpened, dict[str, Any]]:
    """Return the event of a session of rita's with an ID token, and the rest of its entry."""
    row = site.state.identities.get("rita")
    assert row is not None
    usual = {"issuer": ISSUER, "binding": row.index, "key": "k1", "token": sha(b"token"), "issued_at": site.now}
    found = SessionIdentity(**usual | {"expires_at": add_seconds(site.now, 300)} | fields)
    documents = {"session": encode_envelope(site.session("rita"))}
    return SessionOpened(identity=found), {"documents": documents, "actor": "rita", "source": "tcp:10.0.0.7"}


@pytest.mark.thorough
def test_a_session_that_needs_an_identity_is_verified_and_not_with_another_token() -> None:
    site = stage("staffed")
    site.bind("rita")
    site.adopt(policy_set(identity_provider=Provider().pinned(lifetime_s=60)))
    for name, source in (("anna", "unix:0"), ("legal", "tcp")):
        documents = {"session": encode_envelope(site.session(name))}
        site.add(SessionOpened(identity=None), documents=documents, actor=name, source=source)
    event, rest = identified(site)
    opened = site.add(event, **rest)
    site.add(SessionClosed(opened=opened.index, principal="rita"), actor="rita")
    assert findings(site) == []
    for fields, rule in (
        ({"key": "k2"}, "session: a pinned key"),
        ({"binding": 1}, "session: the valid binding"),
        ({"issuer": "https://login.other.example"}, "session: the provider's issuer"),
        ({"issued_at": add_seconds(site.now, 3_600)}, "session: a token that was issued"),
        ({"issued_at": add_seconds(site.now, -3_600)}, "session: a fresh token"),
        ({"expires_at": site.now}, "session: a fresh token"),
    ):
        other = site.fork()
        event, rest = identified(other, **fields)
        forced(other, event, **rest)
        assert findings(other) == [f"entry {len(other.entries) - 1}: {rule}"]
    other = site.fork()
    forced(other, SessionOpened(identity=None), **identified(other)[1])
    rule = "session: an identity exactly where one is needed"
    assert findings(other) == [f"entry {len(other.entries) - 1}: {rule}"]


def evaluated(items: Any, gates: Any = GATES) -> LogBuilder:
    site = stage("imported")
    site.seal(site.train(gates=gates), items=encode_items(items))
    return site


@pytest.mark.thorough
def test_verdicts_of_runs_are_verified_from_their_items() -> None:
    site = evaluated(BETTER)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.activate()
    site.seal(site.train(gates=AGAINST_RELEASED), version=2, items=encode_items(BETTER))
    assert findings(site) == []


def test_an_order_by_passkey_is_verified_and_not_at_another_origin() -> None:
    site = stage("sealed")
    site.keys["rita"] = site.enrol_passkey("rita")
    site.review("rita", "privacy")
    assert findings(site) == []


def test_a_restored_log_is_verified_and_not_with_another_root() -> None:
    site = stage("serving")
    entry = restore(site, lose(site).checkpoint())
    site.resume_release(entry.index, by="otto")
    site.add(site.request(3, token_issued_at=site.now))
    assert findings(site) == []
    restore(site, lose(site, 20).checkpoint(), kept_root=root_at(site, 3))
    assert findings(site) != []


@pytest.mark.parametrize("waits_s", [172_800 // 2, 172_800 // 2 - 10])
def test_a_recovery_is_verified_once_it_has_waited(waits_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    site = stage("staffed")
    site.enrol("vault", "recovery")
    with monkeypatch.context() as hasty:
        hasty.setattr(countersignature, "find_recovery_start", lambda state, pending: pending.recorded_at)
        site.recover("carl", second="anna", waits_s=waits_s)
    assert (findings(site) == []) is (waits_s == 172_800 // 2)


# Manipulations: each is chained and signed anew, so that only the rule in question finds it.


def unruled(site: LogBuilder, event: Event, order: Order, key: Any = None, **rest: Any) -> Entry:
    """Append the entry of an order without checking the rules."""
    envelope = site.sign(order, key)
    documents = {"order": encode_envelope(envelope), **rest.pop("documents", {})}
    return forced(site, event, documents=documents, signed=((envelope.pae_digest, order),), **rest)


def forced(site: LogBuilder, event: Event, **rest: Any) -> Entry:
    entry, documents = site.entry(event, **rest)
    site.entries.append(entry.encoded)
    site.documents.update({sha(data): data for data in documents.values()})
    return entry


def rechained(entries: list[dict[str, Any]]) -> list[bytes]:
    found: list[bytes] = []
    for index, value in enumerate(entries):
        prev = f"sha256:{hash_leaf(found[-1]).hex()}" if found else value["prev"]
        found.append(canonical(value | {"index": index, "prev": prev}))
    return found


def _reviews(site: LogBuilder, by: str = "rita", field: str = "privacy", **fields: Any) -> None:
    unruled(site, ReviewRecorded(policy=site.in_force), site.review_order(by, field, **fields))


def _activates(site: LogBuilder, by: str = "otto") -> None:
    unruled(site, ReleaseActivated(policy=site.in_force), site.release_order(Activate, by))


def grant(site: LogBuilder, name: str, role: str) -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


def changed_byte() -> LogBuilder:
    site = stage("trained")
    site.entries[5] = site.entries[5].replace(b'"source":"unix"', b'"source":"unit"')
    return site


def swapped() -> LogBuilder:
    site = stage("trained")
    values = [parse(one) for one in site.entries]
    times = [one["time"] for one in values]
    values[-1], values[-2] = values[-2], values[-1]
    site.entries = rechained([one | {"time": time} for one, time in zip(values, times, strict=True)])
    return site


def dropped() -> LogBuilder:
    site = stage("trained")
    site.entries = rechained([parse(one) for one in (*site.entries[:-2], site.entries[-1])])
    return site


def by_a_revoked_key() -> LogBuilder:
    site = stage("sealed")
    site.revoke_key("rita")
    _reviews(site)
    return site


def of_one_s_own() -> LogBuilder:
    site = stage("sealed")
    grant(site, "olga", "reviewer:privacy")
    _reviews(site, "olga")
    return site


def in_another_function() -> LogBuilder:
    site = stage("sealed")
    _reviews(site, "rita", "model-risk")
    return site


def without_quorum() -> LogBuilder:
    site = stage("sealed")
    site.review("rita", "privacy")
    _activates(site)
    return site


def by_its_approver() -> LogBuilder:
    site = stage("approved")
    grant(site, "rita", "release-owner:legal")
    _activates(site, "rita")
    return site


def after_the_approvals() -> LogBuilder:
    site = stage("approved")
    site.now = add_seconds(site.now, 90_000)
    _activates(site)
    return site


def before_its_conditions() -> LogBuilder:
    site = stage("sealed")
    later = Conditions(not_before=add_seconds(site.now, 3_600), not_after=None, served_models=(), answers_a_day=None)
    site.review("rita", "privacy", decision="approve-with-conditions", conditions=later)
    site.review("raul", "model-risk")
    _activates(site)
    return site


def twice() -> LogBuilder:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    site.ordered(ReviewRecorded(policy=site.in_force), order)
    unruled(site, ReviewRecorded(policy=site.in_force), order)
    return site


def countersigned_by_its_signer() -> LogBuilder:
    site = stage("staffed")
    order = site.order(Grant, "anna", principal="rita", role="reviewer:safety")
    envelope = site.pend(order)
    add, site.add = site.add, lambda event, **rest: forced(site, event, **rest)  # type: ignore[method-assign]
    site.countersign(RoleGranted(policy=site.in_force), order, envelope, second="anna")
    site.add = add  # type: ignore[method-assign]
    return site


def bound_to_almost_the_pinned_issuer() -> LogBuilder:
    site = stage("staffed")
    site.adopt(policy_set(identity_provider=Provider().pinned()))
    order = site.order(BindIdentity, "anna", principal="rita", issuer=f"{ISSUER}/", subject="sub-rita")
    unruled(site, OrderPending(policy=site.in_force), order)
    return site


def under_another_policy() -> LogBuilder:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    unruled(site, ReviewRecorded(policy="sha256:" + "0" * 64), order)
    return site


def answered_after_revocation() -> LogBuilder:
    site = stage("serving")
    order = site.order(RevokeAdapter, "anna", **site.on_adapter())
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    forced(site, site.request(9))
    return site


def finished_after_revocation() -> LogBuilder:
    site = stage("serving")
    order = site.order(RevokeAdapter, "anna", **site.on_adapter())
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    forced(site, site.answered(2))
    return site


def answered_during_suspension() -> LogBuilder:
    site = stage("serving")
    site.suspend()
    forced(site, site.request(9))
    return site


def answered_after_a_lift_with_a_stolen_key() -> LogBuilder:
    site = stage("serving")
    lifted = site.resume_release(site.suspend().index, "anna", second="ben").index
    site.revoke_key("ben", since=lifted)
    forced(site, site.request(9))
    return site


def resumed_by_one_administrator() -> LogBuilder:
    site = stage("sealed")
    order = site.resumption_order(site.suspend().index, "anna")
    unruled(site, ReleaseResumed(policy=site.in_force), order)
    return site


def resumed_by_another_role() -> LogBuilder:
    site = stage("sealed")
    order = site.resumption_order(site.suspend().index, "raul")
    unruled(site, ReleaseResumed(policy=site.in_force), order)
    return site


def activated_during_suspension() -> LogBuilder:
    site = stage("approved")
    site.suspend(served_model="labels")
    unruled(site, ReleaseActivated(policy=site.in_force), site.release_order(Activate))
    return site


def requested_after_a_stolen_key_s_decision() -> LogBuilder:
    """On the request of an emergency, which only a decision under a valid key lets another request replace."""
    site = lapsed()
    site.break_glass()
    entry = site.review("rita", "privacy", decision="request-changes")
    site.revoke_key("rita", since=entry.index)
    unruled(site, ReleaseRequested(policy=site.in_force), site.request_order())
    return site


def admitted_without_witnesses() -> LogBuilder:
    site = stage("released", policy_set(witnesses=(), witness_quorum=0))
    vkey = next(one for one in TRANSPARENCY["witnessed"]["witnesses"])
    site.adopt(policy_set(witnesses=(vkey,), witness_quorum=1))
    forced(site, site.admitted())
    return site


def erased_text_beside_the_log() -> LogBuilder:
    site = stage("imported")
    text = next(text for text in site.disclosures if text.text == "Name the clause.")
    site.erase(text.commitment)
    return site


def signed_by_another_log_key() -> LogBuilder:
    site = stage("sealed")
    site.log = generate_ed25519()
    return site


def forged_verdict() -> LogBuilder:
    """Return a log with a verdict on items that show nothing; its kinds and sentences agree."""
    site = stage("imported")
    run = site.train(gates=GATES)
    good = site.evaluate(run, encode_items(BETTER))["verdict"]
    value = parse(good)
    value["evaluated"][0]["digest"] = sha(encode_items(ALIKE))
    body, documents = site.sealing(run, items=encode_items(ALIKE), verdict={"verdict": canonical(value)})
    forced(site, body, documents=documents)
    return site


def verdict_that_hides_an_earlier_run() -> LogBuilder:
    site = evaluated(BETTER)
    run = site.train(gates=GATES)
    first = stage("imported")
    value = first.evaluate(first.train(gates=GATES), encode_items(BETTER))["verdict"]
    body, documents = site.sealing(run, version=2, items=encode_items(BETTER), verdict={"verdict": value})
    forced(site, body, documents=documents)
    return site


MANIPULATED: list[tuple[Callable[[], LogBuilder], str]] = [
    (changed_byte, "place: prev"),
    (swapped, "run.finished: its last checkpoint"),
    (dropped, "run.finished: its last checkpoint"),
    (by_a_revoked_key, "the key is not revoked"),
    (of_one_s_own, "review: separation of duties"),
    (in_another_function, "who may: review"),
    (without_quorum, "quorum of approvals"),
    (by_its_approver, "behind an approval"),
    (after_the_approvals, "quorum of approvals"),
    (before_its_conditions, "activate: conditions"),
    (twice, "accepted once"),
    (countersigned_by_its_signer, "another administrator"),
    (bound_to_almost_the_pinned_issuer, "identity: the issuer that policy pins"),
    (under_another_policy, "the valid policy"),
    (answered_after_revocation, "admissible: the adapter"),
    (finished_after_revocation, "admissible: the adapter"),
    (answered_during_suspension, "admissible: no suspension"),
    (answered_after_a_lift_with_a_stolen_key, "admissible: no suspension"),
    (resumed_by_one_administrator, "two: who signs alone"),
    (resumed_by_another_role, "who may: resume-release"),
    (activated_during_suspension, "admissible: no suspension"),
    (requested_after_a_stolen_key_s_decision, "request: an emergency's stands"),
    (admitted_without_witnesses, "witnessed as policy asks"),
    (erased_text_beside_the_log, "an erased text is gone"),
    (signed_by_another_log_key, "a line of each key of the log"),
    (forged_verdict, "the same bytes from the items"),
    (verdict_that_hides_an_earlier_run, "verdict: "),
]


@pytest.mark.parametrize(("made", "rule"), MANIPULATED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_manipulated_log_is_found_by_the_rule_that_forbids_it(made: Callable[[], LogBuilder], rule: str) -> None:
    site = made()
    leaves = [hash_leaf(one) for one in site.entries]
    site.checkpoint = lambda size=None: sign_checkpoint(  # type: ignore[method-assign]
        Checkpoint(ORIGIN, len(leaves), root_of(leaves)), site.log
    )
    found = findings(site)
    assert len(found) == 1 and rule in found[0], found


def test_a_file_that_was_cut_or_changed_is_no_export() -> None:
    site = stage("sealed")
    whole = export_of(site)
    assert (
        findings(site, whole[:-1])
        == findings(site, whole + b"\0")
        == ["export: export: two zero blocks and nothing more"]
    )
    for wrong in (whole[:700], whole.replace(b"0000444", b"0000644", 1)):
        assert findings(site, wrong)[0].startswith("export: ")


def test_a_document_or_text_that_was_changed_or_lost_is_found() -> None:
    site = stage("sealed")
    digest, data = next(iter(site.documents.items()))
    site.documents[digest] = data.replace(b"default", b"defunct")
    assert "documents: the bytes of the digest" in " ".join(findings(site))
    site = stage("sealed")
    site.disclosures = site.disclosures[1:]
    assert findings(site) == ["disclosures: a text that is not erased has a disclosure"]


def test_a_log_that_lost_its_end_is_found_by_its_checkpoint() -> None:
    site = stage("approved")
    found = findings(site, export_of(site, entries=site.entries[:-1]))
    assert any(one.startswith("checkpoint: ") for one in found)
