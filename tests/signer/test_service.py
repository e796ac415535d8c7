"""An appliance whose signing keys are with a signer: founding, appends, snapshots, rotation and backups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance import wiring
from appliance.config.settings import Settings, load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.service import Heartbeat
from appliance.errors import Conflict, Unavailable
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.signatures.keys import generate_ed25519
from appliance.signer.operations import Operations
from appliance.store.files.backups import BackupFolder
from appliance.store.ledger.writer import Writer
from appliance.wiring.backups import find_places
from appliance.wiring.installing import _describe_installation
from appliance.workflows.backups import listing, making, opening
from appliance.workflows.core.record import append
from appliance.workflows.operations.doctor import RemoteKeys, check_database, check_key_files, check_signer
from tests.kit.backups import DATA, RECIPIENTS
from tests.kit.founded import _DEFAULT
from tests.kit.signing import make_signer, serving


@pytest.fixture
def operations(tmp_path: Path) -> Operations:
    return make_signer(tmp_path / "signer")


@pytest.fixture
def socket(operations: Operations, tmp_path: Path) -> Iterator[Path]:
    with serving(operations, tmp_path / "s") as path:
        yield path


@pytest.fixture
def settings(socket: Path, tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "home", {"APPLIANCE_SIGNER_SOCKET": str(socket)})


PEOPLE = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]


def init(settings: Settings) -> Any:
    return wiring.init(settings, PEOPLE, origin=None, single_administrator=False, policy=encode_value(_DEFAULT))


def test_an_appliance_begins_and_continues_with_the_signers_keys(settings: Settings, operations: Operations) -> None:
    trust = init(settings)
    assert trust.log_key == operations.list_log_keys(trust.origin)[0]
    assert sorted(path.name for path in settings.keys.iterdir()) == ["request-digests.secret"]
    with wiring.service(settings) as context:
        append(context, Heartbeat())
        assert open_checkpoint(context.ledger.checkpoint(), trust.log_key).size == 2
        context.ledger.seal_snapshot(1)
        assert settings.snapshot.exists()
        assert context.keys.next_log_key([trust.log_key]) in context.keys.list_log_keys()
    last = operations.last_signed(trust.origin)
    assert last is not None and last.after.size == 2
    with wiring.service(settings) as context:
        assert context.ledger.state.size == 2


@pytest.mark.thorough
def test_a_backup_is_signed_by_the_signer_and_has_no_signing_key(settings: Settings, tmp_path: Path) -> None:
    trust = init(settings)
    folder = BackupFolder(tmp_path / "backups")
    made = making.create(find_places(settings), folder, RECIPIENTS, lambda: datetime.now(UTC))
    found = opening.verify(folder, made.backup.name, listing.given_keys(trust), trust, [DATA])
    assert found.opened
    assert [path.name for path in settings.keys.iterdir()] == ["request-digests.secret"]


@pytest.mark.thorough
def test_an_init_that_died_after_the_signature_continues(
    settings: Settings, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin has a random part, and the signer signs one log."""

    def die(*_: Any) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "commit", die)
        with pytest.raises(Unavailable):
            init(settings)
    begun = operations.find_log()
    trust = init(settings)
    assert trust.origin == begun
    with wiring.service(settings) as context:
        assert context.ledger.state.size == 1
    with pytest.raises(Conflict):
        init(settings)


def test_no_service_starts_without_its_signer(operations: Operations, tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "home", {"APPLIANCE_SIGNER_SOCKET": str(tmp_path / "s")})
    with serving(operations, tmp_path / "s"):
        init(settings)
    with pytest.raises(Unavailable) as refused, wiring.service(settings):
        pass
    assert refused.value.code == "signer-unreachable"


def test_doctor_names_a_signer_that_is_gone_and_keys_that_are_in_both_places(
    operations: Operations, tmp_path: Path
) -> None:
    settings = load_settings(tmp_path / "home", {"APPLIANCE_SIGNER_SOCKET": str(tmp_path / "s")})

    def found() -> dict[str, str]:
        place = _describe_installation(settings)
        return {one.check: one.level for one in (*check_key_files(place), *check_signer(place, None))}

    with serving(operations, tmp_path / "s"):
        init(settings)
        assert found() == {"keys": "ok", "signer": "ok"}
        (settings.keys / "log.pem").write_bytes(b"a key")
        os.chmod(settings.keys / "log.pem", 0o600)
        assert found() == {"keys": "ok", "signer": "warn"}
        (settings.keys / "log.pem").unlink()
    assert found() == {"keys": "ok", "signer": "fail"}


def test_doctor_says_when_the_signers_record_is_behind_the_log(operations: Operations, tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "home", {"APPLIANCE_SIGNER_SOCKET": str(tmp_path / "s")})
    with serving(operations, tmp_path / "s"):
        init(settings)
        place = _describe_installation(settings)
        assert [one.level for one in check_signer(place, 1)] == ["ok"]
        (behind,) = check_signer(place, 2)
        assert (behind.level, behind.found) == ("fail", "it has signed 1 entries, the log has 2")


def test_doctor_opens_the_signer_once(settings: Settings) -> None:
    init(settings)
    place, opened = _describe_installation(settings), []

    def open_signer(origin: str) -> RemoteKeys:
        opened.append(origin)
        assert place.signer is not None
        return place.signer(origin)

    counted = replace(place, signer=open_signer)
    found = [*check_key_files(counted), *check_database(counted, datetime.now(UTC))[0]]
    assert [one.level for one in found if one.check.startswith("signer")] == ["ok"]
    assert len(opened) == 1
