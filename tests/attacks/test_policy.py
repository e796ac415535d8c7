"""A policy set may tighten the rules; it cannot lock everybody out, and nobody adopts one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import AdoptPolicy, assemble_policy
from appliance.errors import BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.appliance import ROOT, Appliance, Refused

LOCK = b'\n@id("nobody-adopts")\nforbid (principal, action == Action::"adopt-policy", resource);\n'


def policy_document(extra: bytes = b"") -> bytes:
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    files["policies.cedar"] += extra
    return encode_value(assemble_policy("default", files))


def adopt(site: Appliance, document: bytes) -> dict[str, object]:
    return site.order(AdoptPolicy(policy=digest_bytes(document), **site.terms("anna")), policy=document)


@pytest.mark.thorough
def test_a_set_that_forbids_its_own_replacement_is_never_pending(shared: Appliance) -> None:
    with pytest.raises(Refused) as refused:
        adopt(shared, policy_document(LOCK))
    assert refused.value.status == 403
    assert set(refused.value.codes) == {"policy-forbids"}
    assert "Cedar policy nobody-adopts forbids anna the action adopt-policy." in refused.value.reasons[0]
    assert shared.entries(type="order.refused")[-1]["actor"] == "anna"


def test_an_appliance_is_not_made_under_a_set_that_refuses_an_action_for_ever(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    files["schema.cedarschema"] = files["schema.cedarschema"].replace(b'action "train"', b'action "drill"')
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]
    settings, policy = load_settings(tmp_path / "h", {}), encode_value(assemble_policy("default", files))
    with pytest.raises(BadInput, match="action train: expected it to take a sample request"):
        wiring.init(settings, people, origin="bank.example/p", single_administrator=False, policy=policy)
    assert not settings.home.exists()


def test_an_appliance_is_not_made_under_a_set_that_can_forbid_its_own_replacement(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default").iterdir()}
    files["policies.cedar"] += (
        b'@id("end") forbid (principal, action, resource) when { context.now > datetime("2099-01-01") };'
    )
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]
    settings, policy = load_settings(tmp_path / "h", {}), encode_value(assemble_policy("default", files))
    with pytest.raises(
        Denied, match=r"Cedar policy end reads context or resource, .* could forbid anna the action adopt-policy"
    ):
        wiring.init(settings, people, origin="bank.example/p", single_administrator=False, policy=policy)
    assert not settings.home.exists()


def test_a_set_too_deep_for_its_parser_is_refused_by_an_entry_and_the_service_continues(shared: Appliance) -> None:
    deep = (
        b'\n@id("deep") forbid (principal, action, resource) when { ' + b"(" * 1_500 + b"false" + b")" * 1_500 + b" };"
    )
    with pytest.raises(Refused) as refused:
        adopt(shared, policy_document(deep))
    assert refused.value.status == 413
    last = shared.entries(type="order.refused")[-1]
    assert (last["actor"], last["body"]["code"]) == ("anna", "too-large")
    assert "brackets inside each other" in refused.value.message


def test_one_administrator_alone_adopts_nothing(shared: Appliance) -> None:
    before = shared.get("/v1/policy")["digest"]
    document = policy_document(b"\n// the same, and a remark\n")
    answer = adopt(shared, document)
    assert (answer["type"], answer["outcome"]) == ("order.pending", "pending")
    with pytest.raises(Refused, match="cannot countersign it"):
        shared.countersign(str(answer["order"]), by="anna")
    assert shared.get("/v1/policy")["digest"] == before
    shared.countersign(str(answer["order"]))
    assert shared.get("/v1/policy")["digest"] == digest_bytes(document)
