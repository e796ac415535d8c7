"""The rules of serving: approvals, releases, admission, slots and requests."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.names import NO_DIGEST, add_seconds
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Slot
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.governance.service import ServiceStarted, ServiceStopped
from appliance.domain.releases.activations import Activate, ReleaseActivated, ReleaseRolledBack, Rollback
from appliance.domain.releases.adapters import AdapterQuarantined, AdapterRevoked, RevokeAdapter
from appliance.domain.serving.requests import RequestRefused, name_request
from appliance.domain.serving.slots import AdapterLoaded, AdmissionRefused
from appliance.domain.serving.tokens import RevokeTokens, TokensRevoked
from appliance.errors import Denied, NotAuthenticated
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.refusals import refuses


def test_a_request_is_named_by_a_uuid_of_its_time() -> None:
    """Requests of one time are adjacent in the order of names."""
    time = 1_764_000_000_123
    name = name_request(time, b"\xff" * 10)
    value = uuid.UUID(name)
    assert (value.version, value.variant, value.int >> 80) == (7, uuid.RFC_4122, time)
    assert name_request(time, bytes(10)) < name < name_request(time + 1, bytes(10))
    assert len({name_request(time, n.to_bytes(10)) for n in range(1000)}) == 1000
    assert re.fullmatch(r"[0-9a-f]{32}", name)


def adapter(site: LogBuilder, version: int = 1) -> Adapter:
    found = site.state.adapters.get(f"clauses@{version}")
    assert found is not None
    return found


def revoke_adapter(site: LogBuilder, version: int = 1) -> None:
    order = site.order(RevokeAdapter, "anna", **site.on_adapter(version))
    site.ordered(AdapterRevoked(policy=site.in_force), order)


def roll_back(site: LogBuilder, version: int, by: str = "otto") -> None:
    order = site.release_order(Rollback, by, version)
    site.ordered(ReleaseRolledBack(policy=site.in_force), order)


def second_version(site: LogBuilder) -> None:
    """clauses@2: sealed, approved, activated."""
    site.seal(site.train(), 2)
    site.review("rita", "privacy", 2)
    site.review("raul", "model-risk", 2)
    site.activate(2)


# The quorum.


def test_without_approvals_nothing_is_released() -> None:
    site = stage("sealed")
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 0."):
        site.activate()


def test_one_approval_is_not_two() -> None:
    site = stage("sealed")
    site.review("rita", "privacy")
    with refuses(
        site,
        Denied,
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1.",
        "Adapter clauses@1 needs approvals of 2 different review functions and has",
        "has 1",
    ):
        site.activate()


def test_one_reviewer_signing_twice_is_one() -> None:
    """Even in two fields."""
    site = stage("sealed")
    grant = site.order(Grant, "anna", principal="rita", role="reviewer:model-risk")
    site.two(RoleGranted(policy=site.in_force), grant)
    site.review("rita", "privacy")
    site.review("rita", "privacy")
    site.review("rita", "model-risk")
    with refuses(
        site,
        Denied,
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1.",
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1.",
    ):
        site.activate()


def test_two_reviewers_of_one_field_are_not_two_fields() -> None:
    site = stage("sealed")
    site.enrol("rosa", "reviewer:privacy")
    site.review("rita", "privacy")
    site.review("rosa", "privacy")
    with refuses(site, Denied, "Adapter clauses@1 needs approvals of 2 different review functions and has privacy"):
        site.activate()


def test_a_required_field_is_not_replaced_by_others() -> None:
    site = stage("approved")
    site.adopt(policy_set(required_functions=("security",)))
    with refuses(site, Denied, "Adapter clauses@1 has no valid approval of security."):
        site.activate()


def test_an_approval_for_another_unit_does_not_count() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", unit="sales")
    site.review("raul", "model-risk", unit="legal")
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 1."):
        site.activate()


def test_an_approval_of_another_version_does_not_count() -> None:
    site = stage("approved")
    site.seal(site.train(), 2)
    with refuses(site, Denied, "Adapter clauses@2 needs 2 valid approvals for legal and has 0."):
        site.activate(2)


def test_a_rejection_stands_against_any_number_of_approvals() -> None:
    site = stage("approved")
    site.enrol("rosa", "reviewer:security")
    entry = site.review("rosa", "security", decision="reject")
    with refuses(site, Denied, f"rosa rejected this adapter by entry {entry.index}"):
        site.activate()


def test_a_reviewers_last_word_counts() -> None:
    site = stage("approved")
    site.review("rita", "privacy", decision="reject")
    with refuses(site, Denied, "rita rejected this adapter by entry 28."):
        site.activate()
    site.review("rita", "privacy")
    site.activate()


def test_an_approval_ends_on_its_day() -> None:
    site = stage("approved")
    end = adapter(site).reviews[0].valid_until
    site.now = add_seconds(end, -1)
    fork = site.fork()
    fork.activate()
    site.now = end
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 1."):
        site.activate()


def test_an_approval_falls_with_its_reviewer() -> None:
    site = stage("approved")
    site.revoke("rita")
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 1."):
        site.activate()


# Releases.


@pytest.mark.parametrize("name", ["olga", "rita", "anna", "legal", "audrey"])
def test_only_the_units_release_owner_releases(name: str) -> None:
    site = stage("approved")
    with refuses(site, Denied, "This action needs release-owner:legal"):
        site.ordered(ReleaseActivated(policy=site.in_force), site.release_order(Activate, name))


def test_a_release_owner_releases_to_the_own_unit_only() -> None:
    site = stage("approved")
    order = site.release_order(Activate, unit="sales")
    with refuses(site, Denied, "otto is release-owner:legal. This action needs release-owner:sales."):
        site.ordered(ReleaseActivated(policy=site.in_force), order)


def test_who_ordered_the_run_does_not_release_it() -> None:
    site = stage("approved")
    site.two(
        RoleGranted(policy=site.in_force),
        site.order(Grant, "anna", principal="olga", role="release-owner:legal"),
    )
    with refuses(site, Denied, "olga ordered the training run. Nobody releases what they made."):
        site.ordered(ReleaseActivated(policy=site.in_force), site.release_order(Activate, "olga"))


def test_a_release_names_an_adapter_by_its_bytes() -> None:
    site = stage("approved")
    with refuses(site, Denied, ". The sealed adapter has the manifest"):
        site.ordered(ReleaseActivated(policy=site.in_force), site.release_order(Activate, manifest=NO_DIGEST))
    with refuses(site, Denied, "No adapter with the name other@1 is sealed."):
        site.ordered(ReleaseActivated(policy=site.in_force), site.release_order(Activate, adapter="other"))


def test_a_release_to_a_unit_that_was_revoked_is_refused() -> None:
    site = stage("approved")
    site.revoke("legal")
    with refuses(site, Denied, "legal is not an enrolled unit."):
        site.activate()


def test_a_revoked_adapter_is_not_released() -> None:
    site = stage("approved")
    revoke_adapter(site)
    with refuses(site, Denied, "was revoked by entry"):
        site.activate()


def test_a_rollback_goes_to_what_answered_before() -> None:
    site = stage("released")
    with refuses(site, Denied, "Adapter clauses@1 is active under this name."):
        roll_back(site, 1)
    second_version(site)
    roll_back(site, 1)
    release = site.state.releases.get("legal/labels")
    assert release is not None
    assert [(a.adapter, a.kind) for a in release.history] == [
        ("clauses@1", "activate"),
        ("clauses@2", "activate"),
        ("clauses@1", "rollback"),
    ]


def test_a_rollback_to_what_never_answered_is_refused() -> None:
    site = stage("approved")
    with refuses(site, Denied, "Adapter clauses@1 was not active under this name before."):
        roll_back(site, 1)


def test_a_rollback_needs_what_a_release_needs() -> None:
    site = stage("released")
    second_version(site)
    with refuses(site, Denied, "rita is reviewer:privacy. This action needs release-owner:legal."):
        roll_back(site, 1, "rita")
    revoke_adapter(site, 1)
    with refuses(site, Denied, "Adapter clauses@1 was revoked by entry 37. A revocation cannot be undone."):
        roll_back(site, 1)


def test_an_activation_is_not_recorded_as_a_rollback() -> None:
    site = stage("approved")
    with refuses(site, Denied, "order: expected rollback, got activate"):
        site.ordered(ReleaseRolledBack(policy=site.in_force), site.release_order(Activate))


# Admission.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"served_model": "other"}, "release: expected one for legal/other, got none"),
        ({"unit": "sales"}, "release: expected one for sales/labels, got none"),
        ({"adapter": "clauses@2"}, "adapter: expected clauses@1, got clauses@2"),
        ({"manifest": NO_DIGEST}, "manifest: expected sha256:"),
        ({"policy": NO_DIGEST}, "policy: expected sha256:"),
        ({"approvals": ()}, "approvals: expected ("),
        ({"approvals": (1, 2)}, "approvals: expected ("),
        ({"head": 10_000}, "head: expected at most"),
    ],
)
def test_an_admission_says_what_the_log_says(fields: dict[str, Any], words: str) -> None:
    site = stage("released")
    with refuses(site, Denied, words):
        site.add(site.admitted(**fields))


def spoil_by_revocation(site: LogBuilder) -> None:
    revoke_adapter(site)


def spoil_by_reviewer(site: LogBuilder) -> None:
    site.revoke("raul")


def spoil_by_rejection(site: LogBuilder) -> None:
    site.review("raul", "model-risk", decision="reject")


def spoil_by_time(site: LogBuilder) -> None:
    site.now = adapter(site).reviews[0].valid_until


def spoil_by_policy(site: LogBuilder) -> None:
    site.adopt(policy_set(reviewers=3))


def spoil_by_unit(site: LogBuilder) -> None:
    site.revoke("legal")


def spoil_by_quarantine(site: LogBuilder) -> None:
    site.add(AdapterQuarantined(adapter="clauses@1", message="hmac-sha256:" + "0" * 64))


SPOILS = [
    spoil_by_revocation,
    spoil_by_reviewer,
    spoil_by_rejection,
    spoil_by_time,
    spoil_by_policy,
    spoil_by_unit,
    spoil_by_quarantine,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_spoiled_is_not_admitted(spoil: Any) -> None:
    site = stage("released")
    spoil(site)
    with refuses(site, Denied, "admission of clauses@1 for legal"):
        site.add(site.admitted())


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_spoiled_between_admission_and_load_is_not_loaded(spoil: Any) -> None:
    site = stage("released")
    admitted = site.add(site.admitted())
    spoil(site)
    with refuses(site, Denied, "admission of clauses@1 for legal"):
        site.add(
            AdapterLoaded(
                unit="legal",
                served_model="labels",
                adapter="clauses@1",
                admitted=admitted.index,
                logit_fingerprint="identical",
                engine=None,
            )
        )


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_spoiled_while_loaded_answers_no_request(spoil: Any) -> None:
    site = stage("serving")
    spoil(site)
    with refuses(site, Denied, "admission of clauses@1 for legal"):
        site.add(site.request(3))


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_response_does_not_end_with_success_after_its_release_ended(spoil: Any) -> None:
    """The slot is still loaded: its process has not recorded yet that it emptied it."""
    site = stage("serving")
    site.add(site.request(7))
    end = site.answered(7)
    spoil(site)
    with refuses(site, Denied, "admission of clauses@1 for legal"):
        site.add(end)
    site.add(end, outcome="failure")


def test_a_response_of_a_superseded_release_does_not_end_with_success() -> None:
    site = stage("serving")
    site.add(site.request(7))
    end = site.answered(7)
    site.activate()
    with refuses(site, Denied, "The adapter was admitted under the release of entry 28, which entry 35"):
        site.add(end)
    site.add(end, outcome="interrupted")


def test_a_response_does_not_end_with_success_after_its_token_was_revoked() -> None:
    site = stage("serving")
    token = f"sha256:{'7' * 64}"
    site.add(site.request(7, token=token))
    site.add(site.request(8))
    end = site.answered(7)
    order = site.order(RevokeTokens, "legal", unit="legal", token=token, issued_before=None, application=None)
    site.ordered(TokensRevoked(policy=site.in_force), order)
    with refuses(site, NotAuthenticated, "The token of legal was revoked"):
        site.add(end)
    site.add(end, outcome="failure")
    site.add(site.answered(8))


# Slots.


def test_nothing_is_loaded_that_was_not_admitted() -> None:
    site = stage("released")
    with refuses(site, Denied, "slot: expected one admitted for legal/labels, got none"):
        site.add(site.loaded(1))
    admitted = site.add(site.admitted())
    with refuses(site, Denied, f"admitted: expected {admitted.index}, got {admitted.index - 1}"):
        site.add(
            AdapterLoaded(
                unit="legal",
                served_model="labels",
                adapter="clauses@1",
                admitted=admitted.index - 1,
                logit_fingerprint="identical",
                engine=None,
            )
        )


def test_a_slot_of_yesterdays_release_is_neither_loaded_nor_asked() -> None:
    site = stage("serving")
    second_version(site)
    with refuses(site, Denied, "manifest: expected"):
        site.add(site.request(3))
    site = stage("released")
    admitted = site.add(site.admitted())
    second_version(site)
    with refuses(site, Denied, "manifest: expected"):
        site.add(
            AdapterLoaded(
                unit="legal",
                served_model="labels",
                adapter="clauses@1",
                admitted=admitted.index,
                logit_fingerprint="identical",
                engine=None,
            )
        )


def test_what_was_admitted_by_a_stolen_key_is_admitted_again_though_others_approve_it_too() -> None:
    """Otherwise the record of every answer would continue to name the stolen key's approval."""
    site = stage("released")
    site.enrol("rosa", "reviewer:privacy")
    stolen = site.review("rosa", "privacy")
    site.load()
    site.add(site.request(1))
    site.revoke_key("rosa", since=stolen.index)
    with refuses(site, Denied, f"admitted under the approval of entry {stolen.index}, which is no longer"):
        site.add(site.answered(1))
    site.add(site.answered(1), outcome="failure")
    with refuses(site, Denied, f"admitted under the approval of entry {stolen.index}, which is no longer"):
        site.add(site.request(3))
    with refuses(site, Denied, f"admitted under the approval of entry {stolen.index}, which is no longer"):
        site.add(site.loaded(slot(site).admitted))
    site.add(site.unloaded())
    approvals = tuple(review.index for review in adapter(site).reviews[:2])
    again = site.add(site.admitted(approvals=approvals))
    site.add(site.loaded(again.index))
    site.add(site.request(4))
    assert slot(site).approvals == approvals


def test_an_approval_that_was_renewed_empties_no_slot() -> None:
    site = stage("serving")
    site.review("rita", "privacy")
    site.add(site.request(3))


def test_the_same_adapter_released_again_is_admitted_again() -> None:
    """What an answer's record names as its release is today's, by who signed that."""
    site = stage("serving")
    before, again = slot(site).release, site.activate()
    with refuses(site, Denied, f"under the release of entry {before}, which entry {again.index} replaced"):
        site.add(site.request(3))


def test_a_probe_that_is_not_identical_is_no_load() -> None:
    with pytest.raises(ValueError, match="engine"):
        AdapterLoaded.model_validate(
            {
                "unit": "legal",
                "served_model": "labels",
                "adapter": "clauses@1",
                "admitted": 1,
                "logit_fingerprint": "close",
            }
        )


def test_what_is_unloaded_answers_no_more() -> None:
    site = stage("serving")
    unloaded = site.unloaded()
    site.add(unloaded)
    with refuses(site, Denied, "slot: expected one admitted for legal/labels, got none"):
        site.add(unloaded)
    with refuses(site, Denied, "slot: expected one admitted for legal/labels, got none"):
        site.add(site.request(3))


def slot(site: LogBuilder) -> Slot:
    found = site.state.slots.get("legal/labels")
    assert found is not None
    return found


def test_the_last_token_left_between_the_load_and_the_emptying() -> None:
    site = stage("serving")
    loaded_at = slot(site).loaded_at
    assert loaded_at is not None
    for time in (add_seconds(loaded_at, -1), add_seconds(site.now, 1)):
        with refuses(site, Denied, f"last token: expected a time from {loaded_at} to {site.now}, got {time}"):
            site.add(site.unloaded(last_token=time))
    site.add(site.unloaded(last_token=loaded_at))


def test_no_token_left_a_slot_that_was_never_loaded() -> None:
    site = stage("released")
    site.add(site.admitted())
    with refuses(site, Denied, "last token: expected a time from a load, of which there was none"):
        site.add(site.unloaded(last_token=site.now))
    site.add(site.unloaded())


def test_an_emptying_names_the_slot_that_it_empties() -> None:
    site = stage("serving")
    with refuses(site, Denied, f"admitted: expected {slot(site).admitted}, got 1"):
        site.add(site.unloaded(admitted=1))


def test_a_slot_is_not_filled_over_one_that_answers() -> None:
    """Otherwise the time of its last token would not be recorded."""
    site = stage("serving")
    with refuses(site, Denied, "slot: expected one that is empty, or admitted only, got one that clauses@1 fills"):
        site.add(site.admitted())
    site.add(site.unloaded())
    site.add(site.admitted())
    site.add(site.admitted())


def test_what_an_emptied_slot_was_answering_ends_and_not_well() -> None:
    site = stage("serving")
    site.add(site.request(7))
    end = site.answered(7)
    site.add(site.unloaded())
    with refuses(site, Denied, "outcome: expected failure or interrupted, since its slot was emptied, got success"):
        site.add(end)
    again = site.add(site.admitted())
    site.add(site.loaded(again.index))
    site.add(site.request(8))
    site.add(site.answered(8))
    with refuses(site, Denied, "outcome: expected failure or interrupted"):
        site.add(end)
    site.add(end, outcome="failure")
    assert "7" not in {request.id.lstrip("0") for request in site.state.requests.values()}


@pytest.mark.parametrize(
    ("revoke", "words"),
    [
        (LogBuilder.revoke_base, "Base model smollm2 was revoked by entry 42."),
        (LogBuilder.revoke_dataset, "Dataset clauses@1 was revoked by entry 42."),
    ],
)
def test_with_a_base_or_a_dataset_falls_every_adapter_made_of_it(revoke: Callable[..., Any], words: str) -> None:
    """In a slot, at its admission, at its release and at another training; one reviewer is enough."""
    site = stage("serving")
    second_version(site)
    revoke(site, "rita")
    for version in (1, 2):
        with refuses(site, Denied, words):
            site.activate(version)
    with refuses(site, Denied, words):
        site.add(site.request(4))
    site.add(site.unloaded())
    with refuses(site, Denied, words):
        site.add(site.admitted(2))
    with refuses(site, Denied, words):
        site.request_run()


@pytest.mark.parametrize("name", ["olga", "otto", "audrey", "legal"])
def test_who_neither_administers_nor_reviews_revokes_no_base_and_no_dataset(name: str) -> None:
    site = stage("sealed")
    for revoke in (site.revoke_base, site.revoke_dataset):
        with refuses(site, Denied, "This action needs administrator or reviewer"):
            revoke(name)


def test_a_revocation_names_the_bytes_and_happens_once() -> None:
    site = stage("sealed")
    for revoke, fields in ((site.revoke_base, {"base": "none"}), (site.revoke_dataset, {"version": 2})):
        with refuses(site, Denied, f"by the digest {NO_DIGEST}"):
            revoke(digest=NO_DIGEST)
        with refuses(site, Denied, "with the name"):
            revoke(**fields)
        revoke()
        with refuses(site, Denied, "was revoked by entry"):
            revoke()


# Requests.


def test_a_request_is_answered_by_what_is_loaded() -> None:
    site = stage("released")
    site.add(site.admitted())
    with refuses(site, Denied, "slot: expected a loaded adapter, got one that is admitted only"):
        site.add(site.request(1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"served_model": "other"}, "slot: expected one admitted for legal/other, got none"),
        ({"unit": "sales"}, "slot: expected one admitted for sales/labels, got none"),
        ({"request": f"{2:032x}"}, "request: expected a new one"),
    ],
)
def test_a_request_that_nothing_loaded_is_for_is_refused(fields: dict[str, Any], words: str) -> None:
    site = stage("serving")
    with refuses(site, Denied, words):
        site.add(site.request(3, **fields))


def test_another_unit_is_not_the_actor_of_a_request() -> None:
    site = stage("serving")
    with refuses(site, Denied, "actor: expected legal, got sales"):
        site.add(site.request(3), actor="sales")


RESTS = [
    {"adapter": "clauses@2"},
    {"manifest": f"sha256:{'1' * 64}"},
    {"admitted": 3},
    {"release": 3},
    {"approvals": (3, 4)},
    {"approvals": ()},
]
ANSWERS = "what answers: expected ('legal', 'labels', 'clauses@1', 'sha256:"


@pytest.mark.parametrize("fields", RESTS)
def test_a_request_names_what_its_slot_rests_on(fields: dict[str, Any]) -> None:
    site = stage("serving")
    with refuses(site, Denied, ANSWERS):
        site.add(site.request(3, **fields))


@pytest.mark.parametrize("fields", [{"unit": "sales"}, {"served_model": "other"}, *RESTS])
def test_a_request_is_finished_as_what_it_began(fields: dict[str, Any]) -> None:
    site = stage("serving")
    with refuses(site, Denied, ANSWERS):
        site.add(site.answered(2, **fields))


def test_a_request_is_finished_once() -> None:
    site = stage("serving")
    site.add(site.answered(2), outcome="interrupted")
    with refuses(site, Denied, "request: expected an open one"):
        site.add(site.answered(2))
    assert len(site.state.requests) == 0


def test_refusals_change_nothing() -> None:
    site = stage("serving")
    before = list(site.state.projections())
    site.add(RequestRefused(unit="sales", application=None, served_model=None, code="not-found", count=2))
    site.add(AdmissionRefused(unit="sales", served_model="labels", adapter=None, code="not-admitted", refusals=()))
    assert list(site.state.projections()) == before


# The instruction that a release puts in.


def adding(site: LogBuilder) -> str:
    """Activate the stage's release again so that it adds the instruction. Return the instruction's commitment."""
    site.activate(adds_instruction=True)
    site.load()
    dataset = site.state.datasets.get("clauses@1")
    assert dataset is not None
    return dataset.instruction


def test_a_request_names_the_instruction_that_its_release_put_in_and_its_end_the_same() -> None:
    site = stage("serving")
    instruction = adding(site)
    site.add(site.request(3, instruction=instruction))
    with refuses(site, Denied, "instruction"):
        site.add(site.answered(3))
    site.add(site.answered(3, instruction=instruction))
    site.add(site.request(4))
    with refuses(site, Denied, "instruction"):
        site.add(site.answered(4, instruction=instruction))
    site.add(site.answered(4))


def test_nothing_is_put_in_where_the_release_does_not_say_so_and_nothing_but_the_instruction() -> None:
    site = stage("serving")
    dataset = site.state.datasets.get("clauses@1")
    assert dataset is not None
    with refuses(site, Denied, "instruction"):
        site.add(site.request(3, instruction=dataset.instruction))
    adding(site)
    bound = [key for key, text in site.state.texts.items() if "dataset:clauses" in text.subjects]
    (owner,) = (key for key in bound if key != dataset.instruction)
    with refuses(site, Denied, "instruction"):
        site.add(site.request(3, instruction=owner))


def test_an_instruction_that_was_erased_is_put_in_no_more_and_no_release_can_ask_for_it() -> None:
    site = stage("serving")
    instruction = adding(site)
    site.erase(instruction)
    with refuses(site, Denied, "erased"):
        site.add(site.request(3, instruction=instruction))
    site.add(site.request(3))
    with pytest.raises(Denied, match=r"The instruction of dataset clauses@1 was erased by entry 39\."):
        site.activate(adds_instruction=True)
    site.activate()


def test_what_a_releases_signature_means_says_whether_the_instruction_is_put_in() -> None:
    site = stage("approved")
    for model in (Activate, Rollback):
        plain, added = (
            ACTIONS[model.action].explain(site.release_order(model, adds_instruction=adds)) for adds in (False, True)
        )
        assert added == f"{plain} Where a request has no system message, it gets the dataset's instruction."


@pytest.mark.parametrize("issued_at", ["9999-01-01T00:00:00.000Z", "2001-01-01T00:00:00.000Z"])
def test_a_request_names_a_time_that_its_token_can_have(issued_at: str) -> None:
    """A later one would get past a revocation by time."""
    site = stage("serving")
    with refuses(site, Denied, "token_issued_at: expected a time from"):
        site.add(site.request(3, token_issued_at=issued_at))


def test_what_a_stopped_or_started_service_was_answering_does_not_end_well() -> None:
    for event in (
        ServiceStopped(reason="signal", process=None),
        ServiceStarted(version="1", code=NO_DIGEST, layers={}, process=None, epoch=None),
    ):
        site = stage("serving")
        answered = site.answered(2)
        site.add(event)
        assert len(site.state.slots) == 0
        with refuses(site, Denied, "outcome: expected failure or interrupted"):
            site.add(answered)
        site.add(answered, outcome="interrupted")


def test_a_slot_is_loaded_once() -> None:
    site = stage("serving")
    slot = site.state.slots.get("legal/labels")
    assert slot is not None
    with refuses(site, Denied, "slot: expected one that is admitted only, got one that is loaded"):
        site.add(site.loaded(slot.admitted))


def test_refusals_are_of_no_person_and_of_no_unknown_adapter() -> None:
    site = stage("serving")
    with refuses(site, Denied, "unit: expected no person, got anna"):
        site.add(
            RequestRefused(unit="anna", application=None, served_model=None, code="denied", count=1), outcome="denied"
        )
    with refuses(site, Denied, "unit: expected no person, got anna"):
        site.add(
            AdmissionRefused(unit="anna", served_model="labels", adapter=None, code="denied", refusals=()),
            outcome="denied",
        )
    with refuses(site, Denied, "adapter: expected a sealed one"):
        site.add(
            AdmissionRefused(unit="legal", served_model="labels", adapter="other@1", code="denied", refusals=()),
            outcome="denied",
        )
