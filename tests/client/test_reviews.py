from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.client import evidence, releases
from appliance.client.support import orders
from appliance.domain.core.entry import Entry, encode_entry, parse_entry
from appliance.domain.core.records.serving import Activation, Release
from appliance.domain.data.imports import ImportRequested
from appliance.domain.data.kinds import DatasetDescription, encode_about
from appliance.domain.queries.review.values import open_parts
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.errors import BadInput, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.signatures.dsse import Statement, encode_envelope, encode_statement, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner
from scripts.kit.log_builder import ORIGIN, b64
from tests.client.conftest import Office
from tests.kit.founded import ABOUT, FILES

VALID_UNTIL = "2999-01-01T00:00:00.000Z"


def _gather(office: Office, name: str = "clauses@1") -> evidence.ReviewEvidence:
    return evidence.gather(office.as_("rita"), office.anchor, name, lambda count: None)


def test_the_evidence_is_hashed_here_and_names_what_a_signature_would_bind(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    found = _gather(office)
    row = office.site.state.adapters.get("clauses@1")
    assert row is not None
    signed = found.page.signed_content
    assert found.digest == row.manifest
    assert {file.path: file.digest for file in signed.files} == {p: digest_bytes(d) for p, d in FILES.items()}
    assert [(one.name, one.summary) for one in found.page.measures] == [("accuracy", "0.900, its base 0.400")]
    assert (signed.run, signed.ordered_by, signed.sealed) == ("r-000001", "olga", row.index)


def test_every_byte_counts_on_the_meter(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    counts: list[int] = []
    evidence.gather(office.as_("rita"), office.anchor, "clauses@1", counts.append)
    assert sum(counts) == sum(map(len, FILES.values()))


@pytest.mark.parametrize("data", [b"weightz", b"weights and more", b"weight", b""])
def test_a_file_that_is_not_the_manifests_is_refused(open_office: Callable[..., Office], data: bytes) -> None:
    office = open_office("sealed")
    office.service.spoil("clauses@1", "adapter_model.safetensors", data)
    with pytest.raises(Tampered, match=r"adapter_model\.safetensors: expected"):
        _gather(office)


def _swap_document(office: Office, role: str, data: bytes) -> None:
    """Swap a document beneath its entry, as an owner of the database and the log's key could for a new entry."""
    row = office.site.state.adapters.get("clauses@1")
    assert row is not None

    def bend(answer: Any) -> Any:
        return {**answer, "documents": {**answer["documents"], role: b64(data)}}

    office.service.bend[f"/v1/ledger/{row.index}"] = bend


@pytest.mark.parametrize("role", ["manifest", "signature", "provenance"])
def test_a_document_that_the_sealing_entry_does_not_bind_is_refused(
    open_office: Callable[..., Office], role: str
) -> None:
    office = open_office("sealed")
    _swap_document(office, role, b"{}")
    with pytest.raises(Tampered, match=f"document {role}"):
        _gather(office)


def _reseal(office: Office, **documents: bytes) -> None:
    """Seal again without the rules, as an evil service would write and sign the entry."""
    site = office.site
    row = site.state.adapters.get("clauses@1")
    assert row is not None
    entry = parse_entry(site.entries[row.index])
    bound = {**entry.documents, **{role: digest_bytes(data) for role, data in documents.items()}}
    data = encode_entry(Entry(**{**entry.model_dump(), "documents": bound}))
    leaves = [hash_leaf(before) for before in site.entries[: row.index]] + [hash_leaf(data)]
    note = sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), site.log)

    def node(level: int, index: int) -> bytes:
        return root_of(leaves[index << level : (index + 1) << level])

    told = {
        "bytes": b64(data),
        "proof": [b64(step) for step in inclusion_proof(row.index, len(leaves), node)],
        "checkpoint": note.decode(),
    }
    encoded = {role: b64(data) for role, data in documents.items()}
    office.service.bend[f"/v1/ledger/{row.index}"] = lambda answer: {
        **answer,
        **told,
        "documents": {**answer["documents"], **encoded},
    }


def test_a_signature_by_another_key_than_the_logs_first_entry_names_is_refused(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("sealed")
    outsider = EcdsaSigner(generate_private_key(SECP256R1()))
    _, documents = office.site.sealing("r-000001", files=FILES, key=outsider)
    _reseal(office, signature=documents["signature"])
    with pytest.raises(Tampered, match="model signature"):
        _gather(office)


def _provenance(subject: str, dependencies: list[dict[str, Any]], key: EcdsaSigner) -> bytes:
    predicate = {"buildDefinition": {"resolvedDependencies": dependencies}}
    statement = Statement((("clauses", subject),), "https://slsa.dev/provenance/v1", predicate)
    return encode_envelope(sign_envelope(encode_statement(statement), key))


def test_a_provenance_by_another_key_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    outsider = EcdsaSigner(generate_private_key(SECP256R1()))
    _reseal(office, provenance=_provenance(_gather(office).digest, [], outsider))
    with pytest.raises(Tampered, match="envelope, keyid"):
        _gather(office)


def test_a_provenance_of_another_adapter_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    _reseal(office, provenance=_provenance("sha256:" + "4" * 64, [], office.site.adapter_key))
    with pytest.raises(Tampered, match="provenance, subject"):
        _gather(office)


def test_a_provenance_that_names_another_order_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    named = [{"name": "order", "digest": {"sha256": "5" * 64}}]
    _reseal(office, provenance=_provenance(_gather(office).digest, named, office.site.adapter_key))
    with pytest.raises(Tampered, match="provenance, order"):
        _gather(office)


def test_a_row_that_points_to_another_entry_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")

    def bend(answer: Any) -> Any:
        answer["entry"] -= 1
        return answer

    office.service.bend["/v1/adapters/clauses@1/review"] = bend
    with pytest.raises(Tampered, match=r"expected its sealing as entry"):
        _gather(office)


def test_a_run_row_that_points_to_another_runs_order_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")

    def bend(answer: Any) -> Any:
        answer["run_entry"] -= 1
        return answer

    office.service.bend["/v1/adapters/clauses@1/review"] = bend
    with pytest.raises(Tampered, match=r"run r-000001"):
        _gather(office)


def test_what_the_dataset_teaches_is_read_from_proved_entries(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    data = _gather(office).page.training_data
    assert (data.dataset_kind, data.labels, data.instruction) == (ABOUT.dataset_kind, ABOUT.labels, "Name the clause.")


def test_an_instruction_that_was_erased_is_not_shown_and_no_release_adds_it(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    dataset = office.site.state.datasets.get("clauses@1")
    assert dataset is not None
    office.site.erase(dataset.instruction)
    found = _gather(office)
    assert found.page.training_data.instruction is None
    with pytest.raises(BadInput, match="expected its dataset to have one, got one that was erased"):
        releases.check_instruction(found, True)


def test_labels_that_are_not_the_manifests_are_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    other = b64(encode_about(DatasetDescription("classification", ("A", "B", "C"))))
    office.service.bend["/v1/adapters/clauses@1/review"] = lambda answer: {**answer, "about": other}
    with pytest.raises(Tampered, match=r"dataset clauses@1, dataset\.json: expected sha256"):
        _gather(office)


def test_another_datasets_import_is_not_taken_for_this_ones(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    site = office.site
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(instruction=site.text("Other.")))

    def bend(answer: Any) -> Any:
        return {**answer, "dataset_order_entry": requested.index}

    office.service.bend["/v1/adapters/clauses@1/review"] = bend
    with pytest.raises(Tampered, match="dataset clauses@1, order"):
        _gather(office)


def _review(office: Office, signer: str, field: str, decision: str = "approve") -> orders.Receipt:
    found = _gather(office)
    values = {
        "adapter": found.name,
        "manifest": found.digest,
        "decision": decision,
        "unit": "legal",
        "review_function": field,
        "valid_until": _in_a_day(office),
        "request": found.request_for("legal"),
        "conditions": None,
        "on_behalf_of": None,
        "opened": open_parts(found.page),
    }
    proposal = office.propose(signer, ReviewAdapter, values, texts={"meaning": "I read it."})
    return orders.submit(office.connection, orders.sign(proposal, office.site.keys[signer]), office.anchor.log_keys)


def _in_a_day(office: Office) -> str:
    from datetime import UTC, datetime, timedelta

    from appliance.formats.core.timestamp import encode_time

    return encode_time(datetime.now(UTC) + timedelta(days=1))


def test_a_review_binds_the_manifest_that_was_hashed_here(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    receipt = _review(office, "rita", "privacy")
    row = office.site.state.adapters.get("clauses@1")
    assert row is not None
    assert [(r.index, r.reviewer, r.review_function, r.decision) for r in row.reviews] == [
        (receipt.index, "rita", "privacy", "approve")
    ]


@pytest.mark.thorough
def test_an_adapter_that_two_approved_is_activated_and_one_that_one_approved_is_not(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("sealed")
    _review(office, "rita", "privacy")

    def activate() -> orders.Receipt:
        found = _gather(office)
        releases.check_instruction(found, True)
        values = {"adapter": found.name, "manifest": found.digest, "unit": "legal", "served_model": "labels"}
        proposal = office.propose("otto", Activate, {**values, "adds_instruction": True})
        return orders.submit(office.connection, orders.sign(proposal, office.site.keys["otto"]), office.anchor.log_keys)

    with pytest.raises(Denied) as raised:
        activate()
    assert "approvals-missing" in {one.code for one in raised.value.refusals}
    _review(office, "raul", "model-risk")
    assert activate().type == "release.activated"


def test_a_revocation_needs_no_bytes_of_the_adapter(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    for path in FILES:
        office.service.spoil("clauses@1", path, None)
    connection = office.as_("rita")
    proposal = office.propose("rita", RevokeAdapter, {"adapter": "clauses@1"}, texts={"reason": "it leaks"})
    receipt = orders.submit(connection, orders.sign(proposal, office.site.keys["rita"]), office.anchor.log_keys)
    assert receipt.type == "adapter.revoked"


def _released(office: Office, *history: str) -> None:
    steps = tuple(
        Activation(number, "sha256:1", name, "sha256:2", "otto", "sha256:3", "activate", number % 2 == 0)
        for number, name in enumerate(history)
    )
    release = Release(unit="legal", served_model="labels", history=steps)
    office.service.bend["/v1/releases"] = lambda rows: [release.model_dump(mode="json")]


@pytest.mark.parametrize(
    ("history", "wanted", "found"),
    [
        (("a@1", "a@2"), None, ("a@1", True)),
        (("a@1", "a@2", "a@3"), None, ("a@2", False)),
        (("a@1", "a@2", "a@1"), None, ("a@2", False)),
        (("a@1", "a@2", "a@3"), "a@1", ("a@1", True)),
    ],
)
def test_a_rollback_goes_to_the_adapter_before_todays_or_to_the_one_named(
    open_office: Callable[..., Office], history: tuple[str, ...], wanted: str | None, found: tuple[str, bool]
) -> None:
    office = open_office("staffed")
    _released(office, *history)
    assert releases.earlier_adapter(office.as_("otto"), "legal", "labels", wanted) == found


@pytest.mark.parametrize(
    ("history", "unit", "wanted", "words"),
    [
        (("a@1",), "legal", None, "expected an earlier adapter than a@1, got none"),
        (("a@1", "a@2"), "legal", "b@1", "expected one of a@1, got b@1"),
        (("a@1", "a@2"), "sales", None, "expected one of legal/labels, got sales/labels"),
    ],
)
def test_a_rollback_to_nowhere_says_what_there_is(
    open_office: Callable[..., Office], history: tuple[str, ...], unit: str, wanted: str | None, words: str
) -> None:
    office = open_office("staffed")
    _released(office, *history)
    with pytest.raises(NotFound, match=words):
        releases.earlier_adapter(office.as_("otto"), unit, "labels", wanted)
