"""Post-quantum keys as people use them: two administrators add them, commands then require both signatures, and a
service that drops the second one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.releases.adapters import SIGNATURE_FILES
from appliance.formats.log.note import encode_note, is_post_quantum, name_key, parse_note
from appliance.formats.log.trust import encode_trust, parse_trust
from appliance.formats.signatures.ml_dsa import SIGNATURE_BYTES, MlDsaSigner
from appliance.store.files.keyring import POST_QUANTUM_ADAPTER_KEY
from tests.cli.conftest import Desk, Told

Open = Callable[[str], Desk]


def _order(desk: Desk, *words: str, by: str = "anna") -> Told:
    told = desk.as_(by, *words, "--yes")
    assert told.code == 0, told.err
    return told


def _second(desk: Desk, first: Told) -> Told:
    line = next(line for line in first.err.splitlines() if line.startswith("next: another administrator types:"))
    return _order(desk, *line.partition("appliance ")[2].split(), by="ben")


def add_keys(desk: Desk) -> Told:
    return _second(desk, _order(desk, "post-quantum", "add", "--trust", str(desk.trust)))


def _strip(note: str) -> str:
    parsed = parse_note(note.encode())
    lines = tuple(line for line in parsed.signatures if len(line.sig) != SIGNATURE_BYTES)
    assert len(lines) < len(parsed.signatures)
    return encode_note(parsed.__class__(parsed.text, lines)).decode()


def test_two_administrators_add_the_keys_and_the_trust_file_is_still_enough(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = add_keys(desk)
    site = desk.site.state.site
    second = site.checkpoint_keys()[0]
    for text in ("Trust files stay valid", f'"postQuantumLogKey":"{second}"'):
        assert text in told.err
    assert told.err.count(second) == 2, "who signs sees the key, and the line for trust files"
    assert [len(line.sig) for line in parse_note(desk.site.ledger.checkpoint()).signatures] == [SIGNATURE_BYTES, 64]
    show = ("ledger", "show", "0", "--trust", str(desk.trust))
    told = desk.as_("audrey", *show)
    assert told.code == 0, told.err
    assert "the log verified from it to today's key" in told.err
    desk.service.seen.clear()
    assert desk.as_("audrey", *show).code == 0
    assert ("GET", "/v1/ledger/export") not in desk.service.seen, "the keys are remembered"
    told = desk.as_("anna", "post-quantum", "add", "--yes")
    assert told.code == 3
    assert "The log has had post-quantum keys since entry" in told.err


def test_only_administrators_make_the_keys(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = desk.as_("olga", "post-quantum", "add", "--yes")
    assert (told.code, "expected an administrator, got olga" in told.err) == (3, True)
    assert not [vkey for vkey in desk.site.keyring.log_signers("bank.example/log") if is_post_quantum(vkey)]


def test_keys_that_the_service_did_not_make_are_refused(open_desk: Open) -> None:
    desk = open_desk("staffed")
    desk.service.bend["/v1/post-quantum-keys"] = lambda made: {
        **made,
        "adapter_key": desk.site.make_post_quantum_keys()["adapter_key"],
    }
    told = desk.as_("anna", "post-quantum", "add", "--yes")
    assert told.code == 5
    assert "expected the post-quantum key that this appliance has made" in told.err


def test_a_proof_whose_second_signature_was_removed_is_refused(open_desk: Open) -> None:
    desk = open_desk("staffed")
    add_keys(desk)
    show = ("ledger", "show", "0", "--trust", str(desk.trust))
    assert desk.as_("audrey", *show).code == 0
    desk.service.bend["/v1/ledger/0"] = lambda shown: {**shown, "checkpoint": _strip(shown["checkpoint"])}
    told = desk.as_("audrey", *show)
    assert (told.code, "note, signature: expected one by" in told.err) == (6, True)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_service_that_drops_the_second_key_is_refused(trusted: bool, open_desk: Open) -> None:
    """All of its later checkpoints have a valid Ed25519 signature."""
    desk = open_desk("staffed")
    add_keys(desk)
    show = ("ledger", "show", "0", *(("--trust", str(desk.trust)) if trusted else ()))
    assert desk.as_("audrey", *show).code == 0

    def drop(about: dict[str, Any]) -> dict[str, Any]:
        return {**about, "post_quantum_log_key": None, "checkpoint": _strip(about["checkpoint"])}

    desk.service.bend["/v1/about"] = drop
    told = desk.as_("audrey", *show)
    assert told.code == 6
    assert "which a log never gives up" in told.err


@pytest.mark.thorough
def test_the_log_key_of_ml_dsa_is_rotated_alone(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "log-key", "rotate", "--post-quantum", "--yes")
    assert (told.code, "The log has no post-quantum key that this one could replace." in told.err) == (3, True)
    add_keys(desk)
    second, first = desk.site.state.site.checkpoint_keys()
    told = _second(desk, _order(desk, "log-key", "rotate", "--post-quantum", "--old-until", "now"))
    assert "appliance-witness cosign" not in told.err, "witnesses identify the log by Ed25519"
    again, same = desk.site.state.site.checkpoint_keys()
    assert (same, again != second, is_post_quantum(again)) == (first, True, True)
    _second(desk, _order(desk, "log-key", "rotate", "--old-until", "now"))
    assert desk.site.state.site.checkpoint_keys()[0] == again
    told = desk.as_("audrey", "ledger", "show", "0", "--trust", str(desk.trust))
    assert told.code == 0, told.err
    told = desk.as_("audrey", "ledger", "verify", "--trust", str(desk.trust), "--json")
    assert (told.code, json.loads(told.out)["verdict"]) == (0, "verified"), told.out


def _seal(desk: Desk) -> None:
    signer = desk.site.keyring.open_signer(POST_QUANTUM_ADAPTER_KEY)
    assert isinstance(signer, MlDsaSigner)
    desk.site.second_adapter_key = signer
    desk.site.seal()


@pytest.mark.thorough
def test_a_reviewers_client_checks_both_signatures_of_an_adapter(open_desk: Open) -> None:
    desk = open_desk("trained")
    add_keys(desk)
    _seal(desk)
    show = ("review", "show", "clauses@1", "--trust", str(desk.trust))
    told = desk.as_("rita", *show)
    assert told.code == 0, told.err
    manifest = desk.site.state.adapters.get("clauses@1").manifest  # type: ignore[union-attr]
    for name in SIGNATURE_FILES:
        assert desk.site.artifacts.read_beside(manifest, name)
    desk.service.bend["/v1/ledger"] = lambda page: {**page, "entries": []}
    told = desk.as_("rita", *show)
    assert (told.code, "expected the entry that added its post-quantum keys, got none" in told.err) == (6, True)


def test_an_exported_adapter_loads_under_both_keys_only(open_desk: Open) -> None:
    from datetime import UTC, datetime, timedelta

    from appliance.errors import ApplianceError
    from appliance.loader import check_folder

    desk = open_desk("trained")
    add_keys(desk)
    _seal(desk)
    desk.site.review("rita", "privacy")
    desk.site.review("raul", "model-risk")
    desk.site.activate()
    folder = desk.folder / "exported"
    told = desk.as_("otto", "release", "export", "legal", "labels", "--folder", str(folder), "--yes")
    assert told.code == 0, told.err
    trust, now = parse_trust(desk.trust.read_bytes()), datetime.now(UTC) + timedelta(seconds=1)
    second, first = desk.site.state.site.checkpoint_keys()
    path = desk.folder / "loader.json"

    def check(key: str | None) -> None:
        given = trust.__class__(trust.origin, first, trust.genesis, trust.administrators, key)
        path.write_bytes(encode_trust(given))
        check_folder(folder, path, now, unit="legal", served_model="labels")

    check(second)
    for key in (None, f"{trust.origin}+" + second.split("+", 1)[1].replace("A", "B", 1)):
        with pytest.raises(ApplianceError):
            check(key)
    data = (folder / SIGNATURE_FILES[1]).read_bytes()
    (folder / SIGNATURE_FILES[1]).unlink()
    with pytest.raises(ApplianceError, match="expected 2, one of each adapter key, got 1"):
        check(second)
    (folder / SIGNATURE_FILES[1]).write_bytes((folder / SIGNATURE_FILES[0]).read_bytes())
    with pytest.raises(ApplianceError, match="model signature"):
        check(second)
    (folder / SIGNATURE_FILES[1]).write_bytes(data)
    proofs = (folder / "proofs.json").read_bytes()
    value = json.loads(proofs)
    (folder / "proofs.json").write_bytes(
        proofs.replace(
            json.dumps(value["checkpoint"], ensure_ascii=False).encode(),
            json.dumps(_strip(value["checkpoint"]), ensure_ascii=False).encode(),
        )
    )
    with pytest.raises(ApplianceError, match=name_key(second).replace("+", r"\+")):
        check(second)
