"""Moves of keys: from a home into a signer, and from its files into a token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key

from appliance import wiring
from appliance.config.settings import Settings, load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.service import Heartbeat
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.signatures.keys import EcdsaSigner, generate_ed25519, verify_signature
from appliance.formats.signatures.ml_dsa import generate_ml_dsa
from appliance.signer import moving
from appliance.signer.moving import adopt, move_to_token, read_last
from appliance.signer.opening import lock_signer, open_signer
from appliance.signer.operations import Operations
from appliance.signer.record import SignedCheckpoint, SignerRecord
from appliance.signer.token import Token
from appliance.store.files.keyring import LOG_KEY, Keyring
from appliance.store.files.lock import lock_folder
from appliance.workflows.core.record import append
from tests.kit.founded import _DEFAULT
from tests.kit.signing import make_signer, serving
from tests.kit.softhsm import PIN

Move = Callable[[], SignedCheckpoint]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return a home whose keyring has the signing keys."""
    made = load_settings(tmp_path / "home", {})
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]
    wiring.init(made, people, origin=None, single_administrator=False, policy=encode_value(_DEFAULT))
    return made


@pytest.fixture
def move(settings: Settings, tmp_path: Path) -> Move:
    url = settings.database_url.get_secret_value()
    return lambda: adopt(settings.home, settings.keys, url, settings.lock, tmp_path / "signer", None, None)


def beat(home: Path, folder: Path, count: int = 1) -> int:
    """Append with a service that has a signer, and return the size of the log."""
    keyring, record = Keyring(folder / "keys"), SignerRecord.in_folder(folder)
    with serving(Operations(keyring, record), folder / "s") as path:
        settings = load_settings(home, {"APPLIANCE_SIGNER_SOCKET": str(path)})
        with wiring.service(settings) as context:
            for _ in range(count):
                append(context, Heartbeat())
            return context.ledger.state.size


def test_the_keys_of_a_home_move_into_the_signer(settings: Settings, move: Move, tmp_path: Path) -> None:
    moved = move()
    assert moved.after.size == 1
    assert sorted(os.listdir(settings.keys)) == ["request-digests.secret"]
    assert sorted(os.listdir(tmp_path / "signer" / "keys")) == ["adapter.pem", "log.pem"]
    assert beat(settings.home, tmp_path / "signer") == 2
    with pytest.raises(ApplianceError), wiring.service(settings):
        pass  # without the signer there is no key


def test_a_move_that_was_interrupted_continues(
    settings: Settings, move: Move, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy, left = Keyring.destroy_key, [1]

    def fail(keyring: Keyring, uri: str) -> None:
        if not left:
            raise OSError("the power went")
        left.pop()
        destroy(keyring, uri)

    with monkeypatch.context() as patch:
        patch.setattr(Keyring, "destroy_key", fail)
        with pytest.raises(OSError, match="power"):
            move()
    assert len(Keyring(settings.keys).list_keys()) == 1
    move()
    assert Keyring(settings.keys).list_keys() == []
    assert beat(settings.home, tmp_path / "signer") == 2


def test_a_signer_whose_record_is_lost_continues_with_a_copy_of_its_keys(
    settings: Settings, move: Move, tmp_path: Path
) -> None:
    move()
    folder = tmp_path / "signer"
    size = beat(settings.home, folder)
    shutil.copytree(folder / "keys", tmp_path / "copy")
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    shutil.copytree(tmp_path / "copy", folder / "keys")
    assert move().after.size >= size
    assert beat(settings.home, folder) > size


def test_a_move_that_ends_before_the_record_is_of_the_key_leaves_none_that_opens(
    settings: Settings, move: Move, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(SignerRecord, "add_log_key", fail)
        with pytest.raises(OSError, match="power"):
            move()
    with pytest.raises(Conflict, match="appliance signer adopt"):
        open_signer(tmp_path / "signer", None, None)
    move()
    assert open_signer(tmp_path / "signer", None, None).describe().size == 1


def test_a_record_of_another_key_is_not_continued(settings: Settings, move: Move, tmp_path: Path) -> None:
    """A signer was made first, and its keys were then replaced."""
    make_signer(tmp_path / "signer")
    shutil.rmtree(tmp_path / "signer" / "keys")
    with pytest.raises(Conflict, match="got another one"):
        move()
    assert Keyring(settings.keys).list_keys() == ["file:adapter", "file:log"]
    assert SignerRecord.in_folder(tmp_path / "signer").read() is None


def test_no_keys_move_from_a_running_service(settings: Settings, move: Move, tmp_path: Path) -> None:
    with lock_folder(settings.lock), pytest.raises(Conflict):
        move()
    assert not (tmp_path / "signer").exists()


def test_keys_of_another_log_are_not_taken(settings: Settings, move: Move, tmp_path: Path) -> None:
    for uri in ("file:log", "file:adapter"):
        Keyring(settings.keys).destroy_key(uri)
    Keyring(settings.keys).make_keys()
    with pytest.raises(Tampered, match="signer's keys"):
        move()
    assert Keyring(settings.keys).list_keys() == ["file:adapter", "file:log"]


def test_a_signer_with_other_keys_is_left_as_it_is(settings: Settings, move: Move, tmp_path: Path) -> None:
    Keyring(tmp_path / "signer" / "keys").make_keys()
    before = Keyring(tmp_path / "signer" / "keys").open_signer("file:log").spki
    with pytest.raises(Conflict):
        move()
    assert Keyring(tmp_path / "signer" / "keys").open_signer("file:log").spki == before
    assert len(Keyring(settings.keys).list_keys()) == 2


def test_an_empty_database_has_no_checkpoint(tmp_path: Path) -> None:
    from appliance.store.database.engine import migrate, open_engine

    engine = open_engine(f"sqlite:///{tmp_path / 'l.db'}")
    migrate(engine)
    engine.dispose()
    with pytest.raises(NotFound, match="empty log"):
        read_last(f"sqlite:///{tmp_path / 'l.db'}")


# --- into a token -----------------------------------------------------------------------------------------------------

KEYS = ["file:adapter", "file:log", "file:log-2"]
outside = pytest.mark.outside


class Session:
    """A session of a token that fails before an object is made, when `left` are made."""

    def __init__(self, session: Any, left: list[int], error: Exception) -> None:
        self._session, self._left, self._error = session, left, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def create_object(self, values: Any) -> Any:
        if not self._left[0]:
            raise self._error
        self._left[0] -= 1
        return self._session.create_object(values)


@pytest.fixture(scope="module")
def opened(token_uri: str) -> Iterator[Token]:
    """Yield the token, which is empty afterwards. Its last session ends the login."""
    made = Token(token_uri, PIN)
    yield made
    _clear(made)
    made._session.close()


def _clear(token: Token) -> None:
    for found in list(token._session.get_objects()):
        found.destroy()


@pytest.fixture
def token(opened: Token, monkeypatch: pytest.MonkeyPatch) -> Token:
    """Return an empty token, which a process opens once."""
    _clear(opened)
    monkeypatch.setattr(moving, "open_keys", lambda *_: opened)
    return opened


@pytest.fixture
def files(tmp_path: Path) -> Keyring:
    """Return the files of a signer with three keys."""
    made = Keyring(tmp_path / "signer" / "keys")
    made.make_keys()
    made.create_key("file:log-2", "Ed25519")
    return made


def move_files(files: Keyring) -> list[str]:
    return move_to_token(files.folder.parent, None, "pkcs11:token", b"")


def test_no_keys_move_from_the_files_of_a_signer_that_serves(files: Keyring) -> None:
    with lock_signer(files.folder.parent), pytest.raises(Conflict, match="stop that signer first"):
        move_files(files)
    assert files.list_keys() == KEYS


@outside
def test_the_keys_of_a_signer_move_into_a_token(files: Keyring, token: Token) -> None:
    before = {uri: files.open_signer(uri).spki for uri in KEYS}
    assert move_files(files) == KEYS
    assert files.list_keys() == []
    for uri, spki in before.items():
        signer = token.open_signer(uri)
        assert signer.spki == spki
        verify_signature(spki, b"data", signer.sign(b"data"))
        private = token._find(uri.removeprefix("file:"), token._pkcs11.ObjectClass.PRIVATE_KEY)
        assert private[token._pkcs11.Attribute.SENSITIVE] and not private[token._pkcs11.Attribute.EXTRACTABLE]
    assert move_files(files) == []


@outside
@pytest.mark.parametrize("steps", range(9))
def test_a_move_into_a_token_that_was_interrupted_continues(
    files: Keyring, token: Token, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The power goes before one of the six objects is made, or before one of the three files is removed."""
    before, left, destroy = {uri: files.open_signer(uri).spki for uri in KEYS}, [steps], Keyring.destroy_key

    def fail(keyring: Keyring, uri: str) -> None:
        if not left[0]:
            raise OSError("the power went")
        left[0] -= 1
        destroy(keyring, uri)

    with monkeypatch.context() as patch:
        patch.setattr(token, "_session", Session(token._session, left, OSError("the power went")))
        patch.setattr(Keyring, "destroy_key", fail)
        with pytest.raises(OSError, match="power"):
            move_files(files)
    assert len(files.list_keys()) == 3 - max(0, steps - 6)
    move_files(files)
    assert files.list_keys() == []
    assert {uri: token.open_signer(uri).spki for uri in KEYS} == before
    assert len(list(token._session.get_objects())) == 6


@outside
def test_files_stay_if_the_token_refuses_a_key(files: Keyring, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(token, "_session", Session(token._session, [3], token._pkcs11.FunctionNotSupported()))
        with pytest.raises(Unavailable, match="keep the keys in files, which are unchanged"):
            move_files(files)
    assert files.list_keys() == KEYS


@outside
@pytest.mark.parametrize("kind", ["PUBLIC_KEY", "PRIVATE_KEY", ""])
def test_files_stay_if_the_token_has_another_key(files: Keyring, token: Token, kind: str) -> None:
    token.create_key(LOG_KEY, "Ed25519")
    for name in ("PUBLIC_KEY", "PRIVATE_KEY"):
        if kind and name != kind:
            token._find("log", token._pkcs11.ObjectClass[name]).destroy()
    with pytest.raises(Conflict, match="got another key"):
        move_files(files)
    assert files.list_keys() == KEYS


@outside
def test_a_key_that_a_token_cannot_have_stays_with_all_others(files: Keyring, token: Token) -> None:
    files.add_key("file:log-3", EcdsaSigner(generate_private_key(SECP384R1())))
    with pytest.raises(BadInput, match="expected Ed25519 or P-256"):
        move_files(files)
    files.destroy_key("file:log-3")
    files.add_key("file:log-3", generate_ml_dsa())
    with pytest.raises(BadInput, match=r"ML-DSA-65 \(file:log-3\)"):
        move_files(files)
    assert files.list_keys() == [*KEYS, "file:log-3"]


@outside
def test_a_signer_without_keys_has_none_to_move(files: Keyring, token: Token) -> None:
    for uri in KEYS:
        files.destroy_key(uri)
    with pytest.raises(NotFound, match="object=log"):
        move_files(files)


@outside
def test_the_keys_of_a_home_move_into_a_token(settings: Settings, token: Token, tmp_path: Path) -> None:
    url, folder = settings.database_url.get_secret_value(), tmp_path / "signer"
    before = {uri: Keyring(settings.keys).open_signer(uri).spki for uri in ("file:log", "file:adapter")}
    assert adopt(settings.home, settings.keys, url, settings.lock, folder, b"", None, "pkcs11:token").after.size == 1
    assert Keyring(settings.keys).list_keys() == []
    assert os.listdir(folder) == ["signed.db"]
    assert {uri: token.open_signer(uri).spki for uri in before} == before
    with serving(Operations(token, SignerRecord.in_folder(folder)), folder / "s") as path:
        now = load_settings(settings.home, {"APPLIANCE_SIGNER_SOCKET": str(path)})
        with wiring.service(now) as context:
            append(context, Heartbeat())
            assert context.ledger.state.size == 2


def test_root_acts_with_the_groups_of_the_owner(tmp_path: Path) -> None:
    """Otherwise a link in the owner's folder leads root to files that only root's group reads."""
    if os.getuid() == 0:
        os.chown(tmp_path, 65534, 65533)
    owner, before = tmp_path.stat(), (os.geteuid(), os.getegid(), os.getgroups())
    with moving._acting_as(tmp_path):
        assert (os.geteuid(), os.getegid()) == (owner.st_uid, owner.st_gid)
        assert sorted(os.getgroups()) == (sorted(os.getgrouplist("nobody", 65533)) if os.getuid() == 0 else before[2])
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
