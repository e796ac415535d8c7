from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.build import find_folder
from appliance.client import policies
from appliance.client.support import files, orders
from appliance.domain.core.names import encode_value
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.policies import ADOPTED_FILES, AdoptPolicy, list_diff_lines
from appliance.errors import BadInput, Conflict, Denied, NotFound, RateLimited, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from scripts.kit.log_builder import b64
from tests.client.conftest import Office
from tests.kit.founded import copied_policy, policy_set


def _folder(tmp_path: Path, **parameters: Any) -> Path:
    folder = tmp_path / "strict"
    folder.mkdir()
    (folder / "parameters.json").write_text(json.dumps(parameters))
    (folder / "policies.cedar").write_text("permit(principal, action, resource);\n")
    (folder / "schema.cedarschema").write_text("entity Person;\n")
    (folder / "tests.json").write_text('[{"name": "one"}]')
    return folder


def test_a_folder_is_a_policy_set_named_as_the_folder(tmp_path: Path) -> None:
    found = policies.load_policy(_folder(tmp_path, reviewers=3))
    assert (found.policy.name, found.policy.parameters.reviewers) == ("strict", 3)
    assert found.policy.cedar == "permit(principal, action, resource);\n"


def test_a_folder_without_a_schema_gets_the_shipped_one(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "schema.cedarschema").unlink()
    shipped = find_folder("policies") / "default" / "schema.cedarschema"
    assert policies.load_policy(folder).policy.cedar_schema == shipped.read_text(encoding="utf-8")


def test_a_file_is_the_whole_set(tmp_path: Path) -> None:
    policy = policy_set(reviewers=4)
    (tmp_path / "set.json").write_bytes(encode_value(policy) + b"\n")
    assert policies.load_policy(tmp_path / "set.json").policy == policy


def test_a_file_of_an_earlier_build_is_proposed_as_it_is(open_office: Callable[..., Office], tmp_path: Path) -> None:
    value = policy_set().model_dump(mode="json")
    del value["parameters"]["witnesses"]
    document = encode_canonical(value)
    (tmp_path / "set.json").write_bytes(document)
    found = policies.load_policy(tmp_path / "set.json")
    assert (found.policy, found.digest) == (policy_set(), digest_bytes(document))
    proposal = open_office("staffed").propose("anna", AdoptPolicy, {}, documents={"policy": found.data})
    assert proposal.documents == {"policy": document}


def test_what_is_no_policy_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none: expected a folder with parameters\.json"):
        policies.load_policy(tmp_path / "none")
    with pytest.raises(BadInput, match="reviewers"):
        policies.load_policy(_folder(tmp_path, reviewers=0))


def test_the_set_in_force_is_believed_by_its_bytes_alone(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    assert policies.current_policy(office.as_("anna")).policy == office.site.policy
    office.service.bend["/v1/policy"] = lambda answer: {
        **answer,
        "document": b64(encode_value(policy_set(reviewers=9))),
    }
    with pytest.raises(Tampered, match="policy set: expected"):
        policies.current_policy(office.as_("anna"))


def test_differences_name_what_was_and_what_would_be(tmp_path: Path) -> None:
    changes = list_diff_lines(policy_set(), policies.load_policy(_folder(tmp_path, reviewers=3)).policy)
    assert '-  "reviewers": 2,' in changes
    assert '+  "reviewers": 3,' in changes
    assert "+permit(principal, action, resource);" in changes
    assert list_diff_lines(policy_set(), policy_set()) == []


@pytest.mark.thorough
def test_long_texts_are_compared_in_linear_time() -> None:
    """Thousands of lines that occur again and again take difflib the square of their number."""
    lines = [f"// {number % 99}" for number in range(30_000)]
    old, new = policy_set(), policy_set()
    old = old.model_copy(update={"cedar": "\n".join(["// equal", *lines, "// end"])})
    new = new.model_copy(update={"cedar": "\n".join(["// equal", *lines[::-1], "// end"])})
    began = time.process_time()
    changes = list_diff_lines(old, new)
    assert time.process_time() - began < 1.0
    assert changes[2] == "@@ -2,30000 +2,30000 @@"
    assert (changes[3], changes[-1], len(changes)) == ("-// 0", "+// 0", 60_003)


def test_adoption_signs_the_digest_of_the_set_that_was_read_here(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("staffed")
    policy = policies.load_policy(copied_policy(tmp_path / "strict", reviewers=3))
    proposal = office.propose("anna", AdoptPolicy, {}, documents={"policy": policy.data})
    orders.submit(office.connection, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_keys)
    (found,) = orders.pending_orders(office.as_("ben"))
    countersignature = office.propose("ben", Countersign, {"order": found.digest})
    orders.submit(office.connection, orders.sign(countersignature, office.site.keys["ben"]), office.anchor.log_keys)
    assert office.site.state.site.policy == policy.digest


def test_no_case_tested_is_not_a_pass(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("initialized")
    folder = copied_policy(tmp_path / "strict")
    (folder / "tests.json").write_text("[]")
    with pytest.raises(BadInput, match="at least one, got none"):
        policies.run_cases(office.as_("anna"), folder)
    (folder / "tests.json").write_text('[{"name": "one", "action": "enrol", "expect": "allow"}]')
    (case,) = policies.run_cases(office.as_("anna"), folder)
    assert (case.name, case.passed, case.expected, case.got) == ("one", True, "allow", "allow")


def test_only_administrators_test_a_set_and_one_set_at_a_time(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    office = open_office("staffed")
    folder = copied_policy(tmp_path / "strict")
    (folder / "tests.json").write_text('[{"name": "one", "action": "enrol", "expect": "allow"}]')
    with pytest.raises(Denied, match=r"olga is operator\. This action needs administrator\."):
        policies.run_cases(office.as_("olga"), folder)
    with office.service.context.policy_trials.run_for("anna"), pytest.raises(RateLimited, match="one at a time"):
        policies.run_cases(office.as_("anna"), folder)
    assert policies.run_cases(office.as_("anna"), folder)[0].passed


def test_the_set_in_force_is_written_to_a_folder_that_is_that_very_set(
    open_office: Callable[..., Office], tmp_path: Path
) -> None:
    found = policies.current_policy(open_office("staffed").as_("anna"))
    folder = tmp_path / found.policy.name
    assert policies.write_policy(folder, found) == found.digest
    assert policies.load_policy(folder) == found
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(ADOPTED_FILES, 0o644)
    assert policies.write_policy(tmp_path / "other", found) != found.digest, "a set is named as its folder"


def test_a_set_of_an_earlier_build_is_written_without_the_parameters_that_it_lacks(tmp_path: Path) -> None:
    value = policy_set().model_dump(mode="json")
    del value["parameters"]["witnesses"]
    (tmp_path / "set.json").write_bytes(encode_canonical(value))
    found = policies.load_policy(tmp_path / "set.json")
    policies.write_policy(tmp_path / found.policy.name, found)
    assert "witnesses" not in json.loads((tmp_path / found.policy.name / "parameters.json").read_text())


def test_a_set_is_written_whole_to_a_new_folder_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set.json").write_bytes(encode_value(policy_set()))
    found = policies.load_policy(tmp_path / "set.json")
    (tmp_path / "taken").mkdir()
    with pytest.raises(Conflict, match="taken: expected a new folder"):
        policies.write_policy(tmp_path / "taken", found)

    def fail(handle: int, data: bytes) -> None:
        with os.fdopen(handle, "wb") as file:
            if data == found.policy.cedar_schema.encode("utf-8"):
                raise OSError(28, "No space left on device")
            file.write(data)

    monkeypatch.setattr(files, "_write", fail)
    with pytest.raises(Unavailable, match="No space left"):
        policies.write_policy(tmp_path / "new", found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.json", "taken"]
