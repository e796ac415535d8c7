"""An exported adapter: the conditions of an export, and its receiver's checks without the appliance."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.actions.registry import RULE_SETS
from appliance.domain.core.action import NEWEST_RULES
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, add_seconds, encode_value
from appliance.domain.governance.log_control import RaiseRules, RulesRaised
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.activations import Activate, ReleaseActivated
from appliance.domain.releases.adapters import SIGNATURE_ROLES, AdapterRevoked, RevokeAdapter
from appliance.domain.releases.admission import entries_needed
from appliance.domain.releases.exports import (
    AdapterExported,
    ApprovedAdapter,
    ExportedEntry,
    ExportedFolder,
    Proofs,
    check_exported,
)
from appliance.errors import ApplianceError, BadInput, Denied, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, policy_set, stage
from tests.domain.releases.test_admission import FILES, node
from tests.kit.evaluated_release import conditions
from tests.kit.refusals import refuses


def received(
    site: LogBuilder, exported: int, *, unit: str = "legal", served_model: str = "labels", **changes: Any
) -> ExportedFolder:
    """Return the folder that the service would send for the export of that entry."""
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    sealed, size = parse_entry(site.entries[adapter.index]), len(site.entries)
    indexes = {0, exported, *entries_needed(site.state, unit, adapter, served_model, site.now)}
    proofs = Proofs(
        exported=exported,
        checkpoint=site.checkpoint().decode(),
        entries=tuple(prove(site, i, size) for i in sorted(indexes)),
    )
    documents = parse_entry(site.entries[exported]).documents
    return replace(
        ExportedFolder(
            proofs=encode_value(proofs),
            state_rows=site.documents[documents["state_rows"]],
            signatures=tuple(
                site.documents[sealed.documents[role]] for role in SIGNATURE_ROLES if role in sealed.documents
            ),
            files={**FILES, MANIFEST_PATH: site.documents[sealed.documents["manifest"]]},
        ),
        **changes,
    )


def prove(site: LogBuilder, index: int, size: int) -> ExportedEntry:
    order = parse_entry(site.entries[index]).documents.get("order")
    return ExportedEntry(
        index=index,
        entry=base64.b64encode(site.entries[index]).decode(),
        proof=tuple(
            base64.b64encode(step).decode()
            for step in inclusion_proof(index, size, lambda level, place: node(site, level, place))
        ),
        envelope=None if order is None else base64.b64encode(site.documents[order]).decode(),
    )


def made() -> tuple[LogBuilder, ExportedFolder]:
    site = stage("released")
    exported = site.export()
    return site, received(site, exported.index)


def check(
    site: LogBuilder,
    found: ExportedFolder,
    now: Time | None = None,
    *,
    unit: str = "legal",
    served_model: str = "labels",
) -> ApprovedAdapter:
    return check_exported(found, site.trust, now or site.now, unit=unit, served_model=served_model)


def test_what_passkeys_approved_and_released_is_loaded_without_the_appliance() -> None:
    """The folder holds where each passkey signs; an assertion of another place is tampered with."""
    site = stage("sealed")
    for name in ("rita", "otto"):
        site.keys[name] = site.enrol_passkey(name)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.activate()
    found = received(site, site.export().index)
    assert (check(site, found).unit, check(site, found).adapter.name) == ("legal", "clauses")
    other = found.state_rows.replace(b"https://appliance.example", b"https://appliance.example:9")
    assert other != found.state_rows
    with pytest.raises(Tampered):
        check(site, replace(found, state_rows=other))


def test_what_was_exported_is_approved_until_its_date() -> None:
    site, found = made()
    approved = check(site, found)
    assert (approved.unit, approved.served_model, approved.adapter.name) == ("legal", "labels", "clauses")
    check(site, found, add_seconds(approved.valid_until, -1))
    with pytest.raises(Denied, match="expired at") as refused:
        check(site, found, approved.valid_until)
    assert refused.value.code == "expired"
    with pytest.raises(Denied, match=r"It was issued at .*\. The service's clock shows .*\."):
        check(site, found, add_seconds(site.now, -3600))


def test_an_export_is_good_for_its_own_unit_and_task_alone() -> None:
    """One adapter, released and exported for two units and for two served models of one of them: each whole, each under
    the log
    that all of them trust."""
    site = stage("approved")
    site.enrol("cleo", "release-owner:sales")
    for reviewer, field in (("rita", "privacy"), ("raul", "model-risk")):
        site.review(reviewer, field, unit="sales")
    owners = {("legal", "labels"): "otto", ("legal", "drafts"): "otto", ("sales", "labels"): "cleo"}
    found = {}
    for (unit, served_model), owner in owners.items():
        order = site.release_order(Activate, owner, unit=unit, served_model=served_model)
        site.ordered(ReleaseActivated(policy=site.in_force), order)
        found[unit, served_model] = received(
            site, site.export(owner, unit=unit, served_model=served_model).index, unit=unit, served_model=served_model
        )
    for (unit, served_model), one in found.items():
        assert check(site, one, unit=unit, served_model=served_model).adapter.name == "clauses"
        for other in found.keys() - {(unit, served_model)}:
            mine, theirs = f"the unit {unit} and the served model {served_model}", f"{other[0]} and {other[1]}"
            wanted = f"for {mine}. It was to be loaded for {theirs}"
            with pytest.raises(Denied, match=wanted) as refused:
                check(site, one, unit=other[0], served_model=other[1])
            assert refused.value.code == ("another-unit" if other[0] != unit else "another-served-model")


def test_another_units_host_hears_nothing_of_the_folder_but_whose_it_is() -> None:
    """Before its date is looked at, and its bytes."""
    site, found = made()
    spoilt = replace(found, files={})
    with pytest.raises(
        Denied,
        match=r"This export is for the unit legal and the served model labels\. It was to be loaded for sales and ",
    ):
        check(site, spoilt, add_seconds(site.now, 10**6), unit="sales")


def test_it_stands_on_after_others_have_gone_on_with_the_log() -> None:
    """The proof is the same under a later checkpoint; what was revoked since the folder cannot know."""
    site, before = made()
    exported = site.state.size - 1
    site.enrol("rosa", "reviewer:security")
    check(site, received(site, exported))
    check(site, before)


@pytest.mark.parametrize("part", ["proofs", "state_rows", "signatures", *FILES, MANIFEST_PATH])
def test_no_byte_of_it_can_be_another(part: str) -> None:
    """Every byte of the small parts, one bit each."""
    site, found = made()
    data = found.files[part] if part in found.files else getattr(found, part)
    data = data[0] if part == "signatures" else data
    for place in range(0, len(data), 1 if len(data) < 400 else 97):
        flipped = bytearray(data)
        flipped[place] ^= 1
        other = bytes(flipped)
        changed = (
            replace(found, files={**found.files, part: other})
            if part in found.files
            else replace(found, **{part: (other,) if part == "signatures" else other})
        )
        with pytest.raises(ApplianceError):
            check(site, changed)


def without_a_file(found: ExportedFolder) -> ExportedFolder:
    return replace(found, files={name: data for name, data in found.files.items() if name != "recipe.json"})


def with_a_file(found: ExportedFolder) -> ExportedFolder:
    return replace(found, files={**found.files, "more.py": b""})


@pytest.mark.parametrize("spoil", [without_a_file, with_a_file])
def test_no_file_is_missing_and_none_is_added(spoil: Callable[[ExportedFolder], ExportedFolder]) -> None:
    site, found = made()
    with pytest.raises(Tampered, match="files: expected"):
        check(site, spoil(found))


def test_another_log_is_not_the_trusted_one() -> None:
    """Whole and well signed, and of somebody else."""
    site, _ = made()
    other, found = made()
    foreign = replace(other.trust, genesis=f"sha256:{hash_leaf(b'another first entry').hex()}")
    with pytest.raises(Tampered, match="first entry: expected"):
        check_exported(found, foreign, other.now, unit="legal", served_model="labels")
    check(site, found)


def test_a_checkpoint_of_another_key_proves_nothing() -> None:
    site, found = made()
    leaves = [hash_leaf(data) for data in site.entries]
    forger = generate_ed25519()
    assert vkey_of(ORIGIN, forger) != site.trust.log_key
    note = sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), forger).decode()
    proofs = Proofs.model_validate_json(found.proofs).model_copy(update={"checkpoint": note})
    with pytest.raises(ApplianceError):
        check(site, replace(found, proofs=encode_value(proofs)))


def test_rows_that_the_log_does_not_bind_are_not_believed() -> None:
    """Another policy, or the rows of another export."""
    site, found = made()
    other = stage("released")
    other.adopt(policy_set(clock_skew_s=30))
    foreign = received(other, other.export().index).state_rows
    rows = found.state_rows.replace(b'"clock_skew_s":60', b'"clock_skew_s":600')
    assert rows != found.state_rows
    for state_rows in (rows, foreign):
        with pytest.raises(Tampered, match=r"expected adapter\.exported of sha256:"):
            check(site, replace(found, state_rows=state_rows))


def test_an_export_under_later_rules_than_the_build_knows_is_not_evaluated_by_earlier_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = NEWEST_RULES + 1
    monkeypatch.setitem(RULE_SETS, later, RULE_SETS[NEWEST_RULES])
    site = stage("released")
    site.two(RulesRaised(policy=site.in_force), site.order(RaiseRules, "anna", rules=later))
    found = received(site, site.export().index)
    with pytest.raises(BadInput, match=f"version {NEWEST_RULES} at most, got {later}: this build is older"):
        check(site, found)


def test_an_entry_that_is_left_out_is_missed() -> None:
    site, found = made()
    proofs = Proofs.model_validate_json(found.proofs)
    for left_out in proofs.entries:
        entries = tuple(entry for entry in proofs.entries if entry is not left_out)
        with pytest.raises((BadInput, Tampered), match=f"entry {left_out.index}"):
            check(site, replace(found, proofs=encode_value(proofs.model_copy(update={"entries": entries}))))


def test_approvals_end_in_the_folder_too() -> None:
    """The export ends with the first of them."""
    site = stage("released")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    end = min(review.valid_until for review in adapter.reviews)
    site.now = add_seconds(end, -3600)
    with refuses(site, Denied, f"can be valid until {end}"):
        site.export(valid_until=add_seconds(end, 1))
    found = received(site, site.export(valid_until=end).index)
    check(site, found, add_seconds(end, -1))


# What may be exported.


def test_policy_bounds_how_long_no_revocation_reaches_it() -> None:
    site = stage("released")
    site.adopt(policy_set(export_lifetime_s=3600))
    with refuses(
        site,
        Denied,
        "The export can be valid until",
        f"can be valid until {add_seconds(site.now, 3600)}",
    ):
        site.export(valid_until=add_seconds(site.now, 3601))
    with refuses(site, Denied, "The export can be valid until"):
        site.export(valid_until=site.now)
    site.export(valid_until=add_seconds(site.now, 3600))


@pytest.mark.parametrize("name", ["olga", "rita", "anna", "legal"])
def test_only_the_units_release_owner_exports(name: str) -> None:
    site = stage("released")
    with refuses(site, Denied, "This action needs release-owner:legal"):
        site.export(name)


def test_what_does_not_answer_today_is_not_exported() -> None:
    site = stage("approved")
    order = site.export_order()
    with refuses(
        site, Denied, "Adapter clauses@1 is not active under this name. Only the active version can be exported."
    ):
        site.ordered(AdapterExported(policy=site.in_force), order, documents={"state_rows": b"{}"})
    site = stage("released")
    revoke = site.order(RevokeAdapter, "anna", **site.on_adapter())
    site.ordered(AdapterRevoked(policy=site.in_force), revoke)
    with refuses(site, Denied, "Adapter clauses@1 was revoked by entry 29. A revocation cannot be undone."):
        site.export()


def test_a_suspended_version_is_not_exported_and_a_lift_is_proved_by_the_folder() -> None:
    site = stage("released")
    index = site.suspend().index
    with refuses(site, Denied, f"rita (reviewer:privacy) suspended adapter clauses@1 for legal by entry {index}."):
        site.export()
    site.resume_release(index, "anna", second="ben")
    found = received(site, site.export().index)
    assert check(site, found).adapter.suspensions[0].lifted_by == "anna"
    value = parse_canonical(found.state_rows)
    keys = {row["keyid"] for row in value["keys"]}
    assert keys >= set(value["adapter"]["suspensions"][0]["lifted_keyids"])
    assert check(site, found).adapter.suspensions[0].unit == "legal"


def test_an_export_has_no_suspension_of_another_unit() -> None:
    site = stage("released")
    site.suspend(unit="sales")
    state_rows = parse_canonical(received(site, site.export().index).state_rows)
    assert state_rows["adapter"]["suspensions"] == []


def test_an_export_is_remembered_until_a_later_one_finds_it_expired() -> None:
    """Else a unit that exports every day would make the state grow for ever."""
    site = stage("released")
    first, second = site.export(valid_until=add_seconds(site.now, 60)), site.export()
    assert [row.index for row in site.state.exports.values()] == [first.index, second.index]
    site.now = add_seconds(first.time, 60)
    third = site.export(valid_until=add_seconds(site.now, 60))
    rows = {key: row.valid_until for key, row in site.state.exports.items()}
    keys = [f"legal/labels/{entry.index}" for entry in (second, third)]
    assert rows == dict(zip(keys, (add_seconds(second.time, 3_600), add_seconds(third.time, 60)), strict=True))


def test_the_rows_beside_an_export_are_those_of_the_state() -> None:
    site = stage("released")
    with refuses(site, Denied, "state_rows: expected"):
        site.export(state_rows=b"{}")


def by_request_and_delegate() -> LogBuilder:
    """Released on a request with conditions, by a delegate among others, after a finding was closed."""
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    site.request_release(conditions=conditions(not_after=add_seconds(site.now, 7_200)))
    site.close(site.find().index)
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("raul", "model-risk")
    site.activate()
    return site


def test_a_release_on_a_request_and_by_a_delegate_is_evaluated_by_its_receiver() -> None:
    site = by_request_and_delegate()
    exported = site.export()
    found = received(site, exported.index)
    assert check(site, found).adapter.name == "clauses"


def test_an_export_ends_with_the_conditions_of_its_release() -> None:
    site = by_request_and_delegate()
    with pytest.raises(Denied, match="The export can be valid until"):
        site.export(valid_until=add_seconds(site.now, 8_000))


@pytest.mark.parametrize("kind", ["release.requested", "review.delegated"])
def test_an_export_without_the_proof_of_a_request_or_a_delegation_is_refused(kind: str) -> None:
    site = by_request_and_delegate()
    found = received(site, site.export().index)
    proofs = Proofs.model_validate_json(found.proofs)
    rest = tuple(one for one in proofs.entries if parse_entry(base64.b64decode(one.entry)).type != kind)
    assert len(rest) == len(proofs.entries) - 1
    lacking = replace(found, proofs=encode_value(proofs.model_copy(update={"entries": rest})))
    with pytest.raises(Tampered, match="expected it in the ledger, got none"):
        check(site, lacking)


def test_an_export_after_a_request_was_withdrawn_is_refused() -> None:
    site = by_request_and_delegate()
    site.withdraw_request()
    with pytest.raises(Denied, match=r"Adapter clauses@1 needs 2 valid approvals for legal and has 0\."):
        site.export()


def test_who_ordered_the_run_does_not_export_what_it_made() -> None:
    site = stage("released")
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal="olga", role="release-owner:legal"))
    with refuses(site, Denied, "olga ordered the training run. Nobody releases what they made."):
        site.export("olga")
