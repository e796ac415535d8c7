"""The service's keys: made once, on disk before they are used, and read only where nobody else can read them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pyrage import passphrase

from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.log.note import is_post_quantum
from appliance.formats.signatures.keys import verify_signature
from appliance.store.files import keyring as keyring_module
from appliance.store.files.keyring import ADAPTER_KEY, KINDS, LOG_KEY, POST_QUANTUM_ADAPTER_KEY, Keyring


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def keyring(folder: Path) -> Keyring:
    keyring = Keyring(folder)
    keyring.make_keys()
    return keyring


def test_a_key_signs_after_it_was_opened_as_it_did_when_it_was_made(folder: Path) -> None:
    keyring = Keyring(folder)
    for uri, kind in KINDS.items():
        made = keyring.create_key(uri, kind)
        opened = Keyring(folder).open_signer(uri)
        assert opened.keyid == made.keyid and opened.spki == made.spki
        verify_signature(made.spki, b"data", opened.sign(b"data"))


def test_keys_are_pkcs8_files_of_the_services_own(keyring: Keyring, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.pem", "log.pem"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert load_pem_private_key(path.read_bytes(), None)
        assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_a_key_is_never_made_over_another(keyring: Keyring, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for uri in (LOG_KEY, ADAPTER_KEY):
        with pytest.raises(Conflict):
            keyring.create_key(uri, KINDS[uri])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_may_read_is_refused(keyring: Keyring, folder: Path, mode: int) -> None:
    (folder / "log.pem").chmod(mode)
    with pytest.raises(Tampered, match="mode: expected no rights for group and others"):
        keyring.open_signer(LOG_KEY)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770])
def test_a_folder_that_others_may_enter_is_refused(keyring: Keyring, folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(Tampered, match="mode: expected no rights for group and others"):
        keyring.open_signer(LOG_KEY)
    with pytest.raises(Tampered):
        keyring.keep_secret("x", b"x")


def swap_for_link(folder: Path) -> None:
    (folder / "log.pem").rename(folder / "elsewhere.pem")
    (folder / "log.pem").symlink_to(folder / "elsewhere.pem")


def link_twice(folder: Path) -> None:
    os.link(folder / "log.pem", folder / "twin.pem")


def swap_for_pipe(folder: Path) -> None:
    (folder / "log.pem").unlink()
    os.mkfifo(folder / "log.pem", 0o600)


def swap_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(folder.with_name("moved"))


@pytest.mark.parametrize("change", [swap_for_link, link_twice, swap_for_pipe, swap_folder])
def test_a_link_or_another_kind_in_a_keys_place_is_refused(
    keyring: Keyring, folder: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    with pytest.raises(Tampered):
        keyring.open_signer(LOG_KEY)


def test_a_key_of_another_account_is_refused(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(Tampered, match="owner: expected the service's account 4242"):
        keyring.open_signer(LOG_KEY)


@pytest.mark.parametrize(
    "uri", ["log", "pkcs11:log", "file:", "file:../log", "file:/etc/key", "file:log.pem", "file:LOG", "https://x", ""]
)
def test_only_a_name_in_the_folder_is_a_key(keyring: Keyring, uri: str) -> None:
    with pytest.raises(BadInput):
        keyring.open_signer(uri)


def test_a_missing_key_is_not_found(keyring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        keyring.open_signer("file:other")
    with pytest.raises(NotFound):
        Keyring(tmp_path / "none").open_signer(LOG_KEY)


def test_a_file_that_is_no_key_for_signing_is_refused(keyring: Keyring, folder: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    locked = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for data in (b"", b"nonsense", rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), locked):
        (folder / "log.pem").write_bytes(data)
        with pytest.raises(BadInput):
            keyring.open_signer(LOG_KEY)


def test_a_secret_is_kept_once(keyring: Keyring, folder: Path) -> None:
    keyring.keep_secret("dataset-1", b"\x00" * 32)
    keyring.keep_secret("dataset-1", b"\x00" * 32)
    assert Keyring(folder).read_secret("dataset-1") == b"\x00" * 32
    with pytest.raises(Conflict):
        keyring.keep_secret("dataset-1", b"\x01" * 32)
    assert keyring.read_secret("dataset-1") == b"\x00" * 32
    with pytest.raises(NotFound):
        keyring.read_secret("dataset-2")
    assert stat.S_IMODE((folder / "dataset-1.secret").stat().st_mode) == 0o600


def test_a_key_is_on_disk_before_it_is_handed_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut at any call leaves the whole key or none."""
    fsync = os.fsync
    for at in range(10):
        calls: list[int] = []

        def cut(descriptor: int, calls: list[int] = calls, at: int = at) -> None:
            calls.append(descriptor)
            if len(calls) > at:
                raise KeyboardInterrupt
            fsync(descriptor)

        place = folder / str(at)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cut)
            try:
                made = Keyring(place).create_key(LOG_KEY, "Ed25519")
            except KeyboardInterrupt:
                made = None
        try:
            opened = Keyring(place).open_signer(LOG_KEY)
        except NotFound:
            assert made is None
        else:
            assert made is None or opened.keyid == made.keyid
        if made is not None:
            assert at >= 2, "file, its folder, and the folder's name are synced"
            return
    pytest.fail("no key was ever made")


def test_keys_of_ml_dsa_are_seeds_that_are_made_once(keyring: Keyring, folder: Path) -> None:
    origin = "bank.example/log"
    (first,) = keyring.log_signers(origin)
    vkey = keyring.next_log_key(origin, [first], post_quantum=True)
    assert keyring.next_log_key(origin, [first], post_quantum=True) == vkey, "an unused one is taken again"
    assert is_post_quantum(vkey)
    other = keyring.next_log_key(origin, [first])
    assert not is_post_quantum(other) and list(keyring.log_signers(origin)) == [first, vkey, other]
    adapter = keyring.ensure_key(POST_QUANTUM_ADAPTER_KEY)
    assert Keyring(folder).ensure_key(POST_QUANTUM_ADAPTER_KEY).spki == adapter.spki
    for uri, signer in (("file:log-2", keyring.log_signers(origin)[vkey]), (POST_QUANTUM_ADAPTER_KEY, adapter)):
        path = folder / f"{uri.removeprefix('file:')}.pem"
        assert len(path.read_bytes()) == 128, "PKCS#8 with the seed alone"
        verify_signature(signer.spki, b"data", Keyring(folder).open_signer(uri).sign(b"data"))


@pytest.mark.thorough
def test_a_busy_machine_opens_keys_that_were_encrypted_on_an_idle_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age measures the machine for a millisecond, and refuses work that would take long at this pace."""
    Keyring(tmp_path / "keys", b"a passphrase").make_keys()
    decrypt, refusals = passphrase.decrypt, [3]

    def refuse_at_first(data: bytes, key: str) -> bytes:
        if refusals[0]:
            refusals[0] -= 1
            heavier = re.sub(rb"(-> scrypt \S+) \d+\n", rb"\1 40\n", data, count=1)
            return bytes(decrypt(heavier, key))
        return bytes(decrypt(data, key))

    monkeypatch.setattr(keyring_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(passphrase, "decrypt", refuse_at_first)
    assert Keyring(tmp_path / "keys", b"a passphrase").open_signer(LOG_KEY)
    assert refusals == [0]
    refusals[0] = 1000
    with pytest.raises(BadInput, match="Excessive work"):
        Keyring(tmp_path / "keys", b"a passphrase").open_signer(LOG_KEY)
    assert refusals == [1000 - keyring_module._TRIALS]


@pytest.mark.thorough
def test_keys_can_be_encrypted_by_a_passphrase(tmp_path: Path) -> None:
    """Debian's age opens them as well."""
    made = Keyring(tmp_path / "keys", b"a passphrase")
    made.make_keys()
    signers = [made.open_signer(uri) for uri in (LOG_KEY, ADAPTER_KEY)]
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["adapter.pem.age", "log.pem.age"]
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in (tmp_path / "keys").iterdir())
    opened = Keyring(tmp_path / "keys", b"a passphrase")
    assert [opened.open_signer(uri).spki for uri in (LOG_KEY, ADAPTER_KEY)] == [one.spki for one in signers]
    assert opened.list_keys() == ["file:adapter", "file:log"]
    (tmp_path / "keys" / "log.pem.age").unlink()
    assert opened.open_signer(LOG_KEY).spki == signers[0].spki, "it was decrypted once"
    with pytest.raises(BadInput, match="file that the passphrase opens"):
        Keyring(tmp_path / "keys", b"another").open_signer(ADAPTER_KEY)
    with pytest.raises(NotFound):
        Keyring(tmp_path / "keys").open_signer(ADAPTER_KEY)
