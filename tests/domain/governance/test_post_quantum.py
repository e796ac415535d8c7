"""Post-quantum keys: two administrators add them once; then a checkpoint or an adapter without a valid second signature
is refused, whatever the first signature says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.audit.report import Report
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.governance.post_quantum import AddPostQuantumKeys, PostQuantumKeysAdded
from appliance.domain.governance.service import Initialized
from appliance.domain.releases.admission import AdmissionInputs, check_bytes, open_log_checkpoint
from appliance.errors import ApplianceError, Denied, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.checkpoint import open_checkpoint, parse_checkpoint, witness_vkey_of
from appliance.formats.log.note import NoteSignature, encode_note, parse_note, vkey_of
from appliance.formats.signatures import ml_dsa
from appliance.formats.signatures.bundle import sign_model
from appliance.formats.signatures.keys import generate_ed25519
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa
from scripts.kit.log_builder import ITEMS, ORIGIN, STEPS, LogBuilder, b64, policy_set, stage
from tests.kit.refusals import refuses

NOTHING: Any = object()
FILES = {"adapter_model.safetensors": b"weights", "recipe.json": b"{}", "steps.jsonl": STEPS, "items.jsonl": ITEMS}


def verify(site: LogBuilder, checkpoint: bytes | None = None, trust: Any = NOTHING) -> Report:
    note = site.checkpoint() if checkpoint is None else checkpoint
    given = site.trust if trust is NOTHING else trust
    return verify_log(site.entries, site.documents.get, site.disclosures, note, given, now=site.now)


@pytest.fixture(scope="module", params=["founded with", "added to"])
def signed_twice(request: pytest.FixtureRequest) -> LogBuilder:
    """Return a log with post-quantum keys: from its first entry on, or by an order."""
    if request.param == "founded with":
        site = LogBuilder(post_quantum=True)
    else:
        site = LogBuilder()
        site.add_post_quantum_keys()
    site.enrol("olga", "operator")
    return site


def test_every_checkpoint_then_has_both_signatures_and_ed25519_is_the_last(signed_twice: LogBuilder) -> None:
    site = signed_twice.state.site
    second, first = site.checkpoint_keys()
    assert (site.log_key, site.post_quantum_log_key) == (first, second)
    assert site.signing_keys(signed_twice.now) == (second, first)
    lines = parse_note(signed_twice.checkpoint()).signatures
    assert [len(line.sig) for line in lines] == [3_309, 64]
    report = verify(signed_twice)
    assert (report.verdict, report.findings) == ("unverifiable" if report.essential else "verified", ())
    assert report.checkpoint_size == signed_twice.state.size


def test_the_keys_of_a_log_without_the_order_are_those_of_its_size() -> None:
    site = LogBuilder()
    first = site.state.site.log_key
    assert site.state.site.checkpoint_keys() == (first,)
    assert site.state.site.post_quantum_log_key is None
    added = site.add_post_quantum_keys().index
    assert site.state.site.checkpoint_keys(added) == (first,)
    assert site.state.site.checkpoint_keys(added + 1) == (site.state.site.post_quantum_log_key, first)
    assert len(site.state.site.adapter_keys(added)) == 1
    assert len(site.state.site.adapter_keys(added + 1)) == 2


def _without(site: LogBuilder) -> bytes:
    return _with(site, lambda second: ())


def _with(site: LogBuilder, change: Callable[[NoteSignature], tuple[NoteSignature, ...]]) -> bytes:
    """Return the log's checkpoint with other lines in place of ML-DSA-65's. Ed25519's stays valid."""
    note = parse_note(site.checkpoint())
    second, first = note.signatures
    return encode_note(replace(note, signatures=(*change(second), first)))


def _flip(line: NoteSignature) -> NoteSignature:
    return NoteSignature(line.name, line.key_id, bytes([line.sig[0] ^ 1]) + line.sig[1:])


def _of_another_key(site: LogBuilder) -> bytes:
    forged = site.fork()
    key = generate_ml_dsa()
    forged.log_signers = {**site.log_signers, str(site.state.site.post_quantum_log_key): key}
    return forged.checkpoint()


FORGERIES: dict[str, Callable[[LogBuilder], bytes]] = {
    "the line is removed": _without,
    "the line is of another key of ML-DSA-65": _of_another_key,
    "the line is invalid": lambda site: _with(site, lambda line: (_flip(line),)),
    "there is a second, invalid line by the key": lambda site: _with(site, lambda line: (line, _flip(line))),
    "there is a second, valid line by the key": lambda site: _with(
        site, lambda line: (line, parse_note(site.checkpoint()).signatures[0])
    ),
    "the line of Ed25519 is removed": lambda site: encode_note(
        replace(parse_note(site.checkpoint()), signatures=parse_note(site.checkpoint()).signatures[:1])
    ),
    "the lines are in another order": lambda site: encode_note(
        replace(parse_note(site.checkpoint()), signatures=parse_note(site.checkpoint()).signatures[::-1])
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_forged_checkpoint_is_a_finding(forgery: str, trusted: bool, signed_twice: LogBuilder) -> None:
    note = FORGERIES[forgery](signed_twice)
    report = verify(signed_twice, note, signed_twice.trust if trusted else None)
    assert report.verdict == "failed"
    assert {finding.rule for finding in report.findings} == {"checkpoint"}
    assert all(len(finding.message) < 400 for finding in report.findings), "keys are named by their ids"


@pytest.mark.parametrize("forgery", [name for name in FORGERIES if "order" not in name and ", valid" not in name])
def test_admission_refuses_a_forged_checkpoint(forgery: str, signed_twice: LogBuilder) -> None:
    site, note = signed_twice.state.site, FORGERIES[forgery](signed_twice)
    with pytest.raises(Tampered):
        open_log_checkpoint(note, ORIGIN, site.checkpoint_keys())
    assert open_log_checkpoint(signed_twice.checkpoint(), ORIGIN, site.checkpoint_keys()).origin == ORIGIN


def test_a_trust_file_without_the_key_that_the_first_entry_names_is_not_this_logs() -> None:
    """Otherwise somebody could hand out a trust file under which the second signature is not needed."""
    site = LogBuilder(post_quantum=True)
    other = replace(site.trust, post_quantum_log_key=vkey_of(ORIGIN, generate_ml_dsa()))
    for trust in (replace(site.trust, post_quantum_log_key=None), other):
        findings = verify(site, trust=trust).findings
        assert any("post-quantum log key" in finding.message for finding in findings)


def test_the_keys_are_added_once_by_two_administrators() -> None:
    site = LogBuilder()
    site.enrol("olga", "operator")
    keys = site.make_post_quantum_keys()
    order = site.order(AddPostQuantumKeys, "anna", **keys)
    with refuses(site, Denied, "countersignature"):
        site.ordered(PostQuantumKeysAdded(policy=site.in_force), order)
    with refuses(site, Denied, "administrator"):
        site.pend(site.order(AddPostQuantumKeys, "olga", **keys))
    entry = site.two(PostQuantumKeysAdded(policy=site.in_force), order)
    with refuses(site, Denied, f"The log has had post-quantum keys since entry {entry.index}."):
        site.pend(site.order(AddPostQuantumKeys, "anna", **site.make_post_quantum_keys()))


def test_the_keys_are_new_and_of_ml_dsa() -> None:
    site = LogBuilder()
    keys = site.make_post_quantum_keys()
    classical = generate_ed25519()
    for changed, words in (
        ({"log_key": vkey_of(ORIGIN, classical)}, "no valid ML-DSA-65 key for checkpoints"),
        ({"adapter_key": b64(classical.spki)}, "no valid ML-DSA-65 key for adapters"),
        ({"adapter_key": b64(b"nonsense")}, "no valid ML-DSA-65 key for adapters"),
        ({"log_key": "nonsense"}, "no valid key of a log"),
        ({"log_key": vkey_of("other.example/log", generate_ml_dsa())}, f"has the name {ORIGIN}"),
        ({"log_key": site.state.site.log_key}, "signed this log before"),
    ):
        with refuses(site, Denied, words):
            site.pend(site.order(AddPostQuantumKeys, "anna", **keys | changed))


def test_the_log_key_of_ml_dsa_is_replaced_and_the_other_stays(signed_twice: LogBuilder) -> None:
    site = signed_twice.fork()
    second, first = site.state.site.checkpoint_keys()
    key, end = generate_ml_dsa(), add_seconds(site.now, 3_600)
    vkey = vkey_of(ORIGIN, key)
    site.two(LogKeyRotated(policy=site.in_force), site.order(RotateLogKey, "anna", log_key=vkey, old_until=end))
    site.log_signers = {**site.log_signers, vkey: key}
    assert site.state.site.signing_keys(site.now) == (second, vkey, first)
    assert site.state.site.signing_keys(end) == (vkey, first) == site.state.site.checkpoint_keys()
    assert verify(site).findings == ()
    site.rotate_log_key(end)
    assert site.state.site.signing_keys(end) == (vkey, vkey_of(ORIGIN, site.log))
    assert verify(site).findings == ()


def test_a_key_of_ml_dsa_replaces_none_in_a_log_without_one() -> None:
    site = LogBuilder()
    order = site.order(RotateLogKey, "anna", log_key=vkey_of(ORIGIN, generate_ml_dsa()), old_until=site.now)
    with refuses(site, Denied, "The log has no post-quantum key that this one could replace."):
        site.pend(order)


def test_the_first_entry_names_keys_of_the_right_kinds() -> None:
    site = LogBuilder(post_quantum=True)
    body, documents = site.first, {"policy": site.policy_document}
    assert body.post_quantum is not None
    for changed in (
        {"post_quantum": body.post_quantum.model_copy(update={"log_key": body.log_key})},
        {"post_quantum": body.post_quantum.model_copy(update={"adapter_key": body.adapter_key})},
        {"post_quantum": body.post_quantum.model_copy(update={"log_key": vkey_of("other/log", generate_ml_dsa())})},
        {"adapter_key": body.post_quantum.adapter_key},
    ):
        other = LogBuilder.__new__(LogBuilder)
        other.__dict__.update(LogBuilder().__dict__, state=type(site.state)(), entries=[], documents={})
        with pytest.raises(ApplianceError):
            other.add(Initialized(**body.model_dump() | changed), documents=documents)


def test_a_cosigned_checkpoint_has_both_signatures(signed_twice: LogBuilder) -> None:
    site, witness = signed_twice.fork(), generate_ed25519()
    site.adopt(policy_set(witnesses=(witness_vkey_of("witness.example/w1", witness),)))
    body, documents = site.cosigned(witness, "witness.example/w1")
    note = parse_note(documents["note"])
    assert parse_checkpoint(note.text).size == body.size
    second = str(site.state.site.post_quantum_log_key)
    open_checkpoint(documents["note"], second)
    stripped = tuple(line for line in note.signatures if len(line.sig) != 3_309)
    assert len(stripped) == len(note.signatures) - 1
    with refuses(site, Tampered, "expected one by"):
        site.add(body, documents={"note": encode_note(replace(note, signatures=stripped))})
    site.add(body, documents=documents)


# Adapters.


@pytest.fixture(scope="module")
def trained() -> LogBuilder:
    """Return a log whose run ended before the keys were added, and whose adapter was sealed afterwards."""
    site = stage("trained")
    site.add_post_quantum_keys()
    return site


def test_an_adapter_then_needs_a_second_signature(trained: LogBuilder) -> None:
    site = trained.fork()
    body, documents = site.sealing("r-000001")
    second = documents.pop("post_quantum_signature")
    with refuses(site, Tampered, "model signatures: expected 2, one of each adapter key, got 1"):
        site.add(body, documents=documents)
    forged = second.replace(b'"sig":"', b'"sig":"AAAA')
    for other in (documents["signature"], forged, second[:-1], b"{}"):
        with refuses(site, Tampered, ""):
            site.add(body, documents={**documents, "post_quantum_signature": other})
    site.add(body, documents={**documents, "post_quantum_signature": second})


def test_a_second_signature_by_another_key_or_over_other_files_is_refused(trained: LogBuilder) -> None:
    site = trained.fork()
    own = site.second_adapter_key
    site.second_adapter_key = generate_ml_dsa()
    body, documents = site.sealing("r-000001")
    with refuses(site, Tampered, "model signature"):
        site.add(body, documents=documents)
    assert isinstance(own, MlDsaSigner)
    other = sign_model({"adapter_config.json": digest_bytes(b"other")}, "clauses", own)
    with refuses(site, Tampered, "expected the files found"):
        site.add(body, documents={**documents, "post_quantum_signature": other})


def test_a_log_without_the_keys_takes_no_second_signature() -> None:
    site = stage("trained")
    site.second_adapter_key = generate_ml_dsa()
    body, documents = site.sealing("r-000001")
    with refuses(site, Tampered, "expected 1, one of each adapter key, got 2"):
        site.add(body, documents=documents)


def test_bytes_that_are_loaded_need_both_signatures(trained: LogBuilder) -> None:
    site = trained.fork()
    body, documents = site.sealing("r-000001")
    site.add(body, documents=documents)
    adapter = site.state.adapters.get(body.adapter)
    assert adapter is not None
    files = {**FILES, MANIFEST_PATH: documents["manifest"]}
    both = tuple(documents[role] for role in ("signature", "post_quantum_signature"))
    check_bytes(site.state, adapter, AdmissionInputs(files, both, {}, b""))
    for signatures in (both[:1], (), both[::-1], (both[0], both[0])):
        with pytest.raises(Tampered, match="model signature"):
            check_bytes(site.state, adapter, AdmissionInputs(files, signatures, {}, b""))


# A verifier without ML-DSA.


@pytest.fixture
def old_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    ml_dsa._has_ml_dsa.cache_clear()
    yield
    ml_dsa._has_ml_dsa.cache_clear()


def test_a_verifier_without_ml_dsa_gives_no_verdict(signed_twice: LogBuilder, old_library: None) -> None:
    note = signed_twice.checkpoint()
    with pytest.raises(Unavailable, match="install cryptography 50 or later"):
        verify(signed_twice, note)
    plain = LogBuilder()
    assert verify(plain).findings == ()
