"""The terms of an import are permanent: errors in them are reported before the signature and refused by the rules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import Parameters, PolicySet, parse_policy
from appliance.domain.data.imports import ImportBase, ImportRequested
from appliance.domain.data.kinds import find_similar_labels
from appliance.domain.data.licences import refuse_unknown_classification, refuse_unknown_licence
from appliance.errors import BadInput, Denied
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from scripts.kit.log_builder import stage
from tests.kit.refusals import refuses

POLICY = Parameters(licences=("Vendor-2",), classifications=("open", "secret"))


@pytest.mark.parametrize("word", ["Apache-2.0", "CC0-1.0", "GPL-2.0", "LicenseRef-bank", "Vendor-2"])
def test_spdx_its_own_prefix_and_what_policy_lists_are_licences(word: str) -> None:
    assert refuse_unknown_licence(POLICY, word) == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Apache2", "Apache-2.0"),
        ("apache-2.0", "Apache-2.0"),
        ("CC0", "CC0-1.0"),
        ("GPL3", "GPL-3.0"),
        ("vendor-2", "Vendor-2"),
        ("proprietary", None),
    ],
)
def test_another_word_is_refused_with_the_one_that_was_meant(typed: str, meant: str | None) -> None:
    (told,) = refuse_unknown_licence(POLICY, typed)
    assert typed in str(told) and told.code == "licence-unknown"
    assert f"did you mean {meant}?" in str(told) if meant else "did you mean" not in str(told)


def test_a_classification_is_one_that_policy_lists() -> None:
    assert (
        refuse_unknown_classification(Parameters(), "internal") == refuse_unknown_classification(POLICY, "secret") == []
    )
    assert "did you mean internal?" in str(refuse_unknown_classification(Parameters(), "intrenal")[0])
    assert "classifications: open, secret" in refuse_unknown_classification(POLICY, "internal")[0].remedy
    with pytest.raises(ValidationError):
        Parameters(classifications=())


def test_the_rules_refuse_an_import_whose_words_are_unknown() -> None:
    site = stage("imported")
    order = site.dataset_order(licence="Apache2", classification="intrenal")
    with refuses(site, Denied, "did you mean Apache-2.0", "did you mean internal"):
        site.ordered(ImportRequested(policy=site.in_force), order)
    base = site.order(ImportBase, "olga", base="other", format="gguf", source=digest_bytes(b"x"), licence="Apache2")
    with refuses(site, Denied, "did you mean Apache-2.0"):
        site.ordered(ImportRequested(policy=site.in_force), base)


def test_a_policy_set_without_a_parameter_is_read_with_its_default() -> None:
    policy = PolicySet(name="older", parameters=Parameters(), cedar="", cedar_schema="")
    value = policy.model_dump(mode="json")
    for name in ("licences", "classifications", "reviewers"):
        del value["parameters"][name]
    assert parse_policy(encode_canonical(value)) == policy
    del value["cedar"]
    with pytest.raises(BadInput, match="cedar"):
        parse_policy(encode_canonical(value))
    with pytest.raises(BadInput, match="canonical"):
        parse_policy(encode_value(policy) + b" ")


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        (["Billing", "billing", "card"], [("Billing", "billing")]),
        (["bill ing", "billing"], [("bill ing", "billing")]),
        (["billing", "biling", "bililng"], [("bililng", "billing"), ("biling", "billing")]),
        (["card", "cart", "cash"], []),
        (["level 1", "level 2", "level 12"], []),
        (["access", "billing"], []),
    ],
)
def test_labels_that_are_nearly_the_same_are_found(labels: list[str], pairs: list[tuple[str, str]]) -> None:
    assert set(pairs) <= set(find_similar_labels(labels))
    assert pairs or not find_similar_labels(labels)
