"""The site's Cedar policies are replayed, within bounds, where Cedar is installed, and otherwise reported as
unchecked."""

from __future__ import annotations

import json
import sys

import pytest

from appliance.access import process
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.formats.log.trust import encode_trust
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.cedar_policies import permitting, read_without_bounds
from tests.verifier.test_program import CEDAR_POLICIES, Files, export_of, run


def test_an_entry_that_the_sites_policies_forbid_is_found(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that did not ask its own policies."""
    strict = permitting('@id("no-more-runs") forbid (principal, action == Action::"train", resource);')
    site = stage("imported", strict)
    run_ = site.request_run()
    files.export.write_bytes(export_of(site))
    files.trust.write_bytes(encode_trust(site.trust))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and "Cedar policy no-more-runs forbids olga the action train." in out
    index = site.state.runs.get(run_).index  # type: ignore[union-attr]
    assert f"the site's policies do not allow an entry: entry {index} (run.requested)" in out
    code, out, _ = run(capsys, files.export, "--trust", files.trust, "--without-cedar-policies")
    assert code == 0 and out.startswith("verdict        verified, without Cedar policies\n")


class WithoutCedar:
    """As where cedarpy is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "cedarpy":
            raise ModuleNotFoundError("No module named 'cedarpy'", name=name)


@pytest.fixture
def no_cedar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [WithoutCedar(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "cedarpy" or "appliance.access." in name]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("no_cedar")
def test_without_cedar_a_whole_log_is_unverifiable_unless_that_is_accepted(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 7 and out.startswith("verdict        unverifiable: ")
    assert "not checked    Cedar policies: not replayed" in out and "--without-cedar-policies" in out
    code, out, _ = run(capsys, files.export, "--trust", files.trust, "--effective-access", "legal")
    assert code == 7 and "could load" not in out
    code, out, _ = run(capsys, files.export, "--trust", files.trust, "--without-cedar-policies", "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (0, "verified, without Cedar policies")
    assert report["cedar_policies"] == "not replayed" and report["unchecked"][0].startswith(
        "Cedar policies: not replayed"
    )
    code, out, _ = run(
        capsys,
        files.export,
        "--trust",
        files.trust,
        "--without-cedar-policies",
        "--effective-access",
        "legal",
        "--at",
        "9",
    )
    assert code == 0 and "could load" in out


HOSTILE = {
    "deep": '@id("a") permit (principal, action, resource) when { ' + "(" * 20_000 + "true" + ")" * 20_000 + " };",
    "no policy language": "permit everything",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_policy_set_is_a_finding_and_does_not_end_the_program(
    name: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    site = LogBuilder(policy=PolicySet(name="hostile", parameters=Parameters(), cedar=HOSTILE[name], cedar_schema=""))
    site.enrol("olga", "operator")
    files.export.write_bytes(export_of(site))
    files.trust.write_bytes(encode_trust(site.trust))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and "the site's policies do not allow an entry: entry 1: policy sha256:" in out


def test_text_that_the_bounds_do_not_know_ends_a_process_of_its_own(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_without_bounds(monkeypatch)
    deep = {"cedar": HOSTILE["deep"], "cedar_schema": CEDAR_POLICIES.cedar_schema}
    site = LogBuilder(policy=PolicySet(name="hostile", parameters=Parameters(), **deep))
    site.enrol("olga", "operator")
    files.export.write_bytes(export_of(site))
    files.trust.write_bytes(encode_trust(site.trust))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6 and "got one that ended it by signal" in out


@pytest.mark.parametrize("reason", ["cannot be started", "ends before it reads"])
def test_where_no_process_can_try_the_policies_the_log_is_unverifiable(
    reason: str, files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without limits for processes: that is no defect of the log."""
    if reason == "cannot be started":
        monkeypatch.setattr(process.sys, "executable", "/nonexistent/python")
    else:
        monkeypatch.setattr(process, "_PROGRAM", "import no_such_module_here")
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 7 and "Cedar policies: not replayed: policy set site: expected Cedar text" in out
