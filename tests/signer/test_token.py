"""Keys of a signer in a token: SoftHSM, through PKCS#11."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.domain.releases.adapters import SLSA_PROVENANCE
from appliance.errors import BadInput, Conflict, NotAuthenticated, NotFound, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.signatures.bundle import sign_model, verify_model
from appliance.formats.signatures.dsse import Statement, encode_statement, pae
from appliance.formats.signatures.keys import verify_signature
from appliance.signer.operations import Operations
from appliance.signer.record import SignerRecord
from appliance.signer.token import Token, TokenUri, parse_token_uri
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, POST_QUANTUM_ADAPTER_KEY
from scripts.kit.appliance import ROOT
from tests.kit.small_log import ORIGIN
from tests.kit.softhsm import MODULE, PIN, make_token

outside = pytest.mark.outside


@pytest.fixture(scope="module")
def token(token_uri: str) -> Token:
    made = Token(token_uri, PIN)
    made.make_keys()
    return made


@outside
def test_a_wrong_pin_token_or_module_is_named(token_uri: str) -> None:
    """Before the login, which a process has once."""
    with pytest.raises(NotAuthenticated, match="its PIN"):
        Token(token_uri, b"wrong horse")
    with pytest.raises(Unavailable, match="label other"):
        Token(token_uri.replace("appliance", "other"), PIN)
    with pytest.raises(Unavailable, match="one of PKCS#11"):
        Token(token_uri.replace(MODULE, "/nothing.so"), PIN)


@outside
def test_a_token_signs_as_files_do(token: Token) -> None:
    log, adapter = token.open_signer(LOG_KEY), token.open_signer(ADAPTER_KEY)
    for signer in (log, adapter):
        verify_signature(signer.spki, b"data", signer.sign(b"data"))
    files = {"a.txt": digest_bytes(b"a")}
    verify_model(sign_model(files, "clauses", adapter), adapter.spki, files)


@outside
def test_keys_are_made_once_and_cannot_be_read(token: Token) -> None:
    before = token.open_signer(LOG_KEY).spki
    token.make_keys()
    assert token.open_signer(LOG_KEY).spki == before
    with pytest.raises(Conflict, match="object=log"):
        token.create_key(LOG_KEY, "Ed25519")
    with pytest.raises(NotFound, match="object=log-99;type=private"):
        token.open_signer("file:log-99")
    with pytest.raises(Unavailable, match="ML-DSA-65"):
        token.ensure_key(POST_QUANTUM_ADAPTER_KEY)
    private = token._find("log", token._pkcs11.ObjectClass.PRIVATE_KEY)
    assert private[token._pkcs11.Attribute.SENSITIVE] and not private[token._pkcs11.Attribute.EXTRACTABLE]


@outside
def test_a_log_key_is_rotated_in_the_token(token: Token) -> None:
    (first,) = token.log_signers(ORIGIN)
    new = token.next_log_key(ORIGIN, [first])
    assert token.next_log_key(ORIGIN, [first]) == new != first
    assert list(token.log_signers(ORIGIN)) == [first, new]


@outside
def test_a_signer_uses_the_token(token: Token, tmp_path: Path) -> None:
    record = SignerRecord.in_folder(tmp_path)
    record.create()
    signer = Operations(token, record)
    leaf = hash_leaf(b"first")
    key = signer.list_log_keys(ORIGIN)[0]
    root = Frontier.EMPTY.extend([leaf])[0].root()
    assert open_checkpoint(signer.sign_checkpoint(ORIGIN, 0, [leaf], root, [key]), key).size == 1
    payload = encode_statement(Statement((("clauses", digest_bytes(b"m")),), SLSA_PROVENANCE, {}))
    verify_signature(signer.adapter_key(), pae("application/vnd.in-toto+json", payload), signer.sign_adapter(payload))


def test_the_uri_names_a_token_and_its_module() -> None:
    assert parse_token_uri("pkcs11:token=my%20log?module-path=/m.so") == TokenUri("my log", "/m.so")
    for text in (
        "",
        "token",
        "pkcs11:",
        "pkcs11:token=a",
        "pkcs11:?module-path=/m.so",
        "pkcs11:token=a;object=log?module-path=/m.so",
        "pkcs11:token=a?module-path=/m.so&pin-value=1234",
    ):
        with pytest.raises(BadInput, match="token=LABEL"):
            parse_token_uri(text)


class Commands:
    """The commands of the signer in a folder, with an empty token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, ("--pkcs11", make_token(folder, "own"))
        for name, secret in (("pin", PIN), ("passphrase", b"of the files, which is longer")):
            (folder / name).write_bytes(secret + b"\n")
            (folder / name).chmod(0o600)

    def run(self, name: str, secret: str, *options: str, folder: str = "signer") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "signer", name, "--folder", str(self.folder / folder), "--json"]
        command += ["--passphrase-file", str(self.folder / secret), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    def call(self, name: str, secret: str, *options: str) -> dict[str, object]:
        done = self.run(name, secret, *options)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("SOFTHSM2_CONF", "")  # the token sets it, and it is reset after the test
    return Commands(tmp_path)


@outside
def test_the_commands_of_a_signer_take_the_token_and_its_pin(commands: Commands) -> None:
    for name in ("init", "show"):
        assert commands.call(name, "pin", *commands.token)["size"] == 0
    assert not (commands.folder / "signer" / "keys").exists()
    done = commands.run("init", "passphrase")  # and the token is forgotten
    assert "name it with --pkcs11" in done.stderr
    assert not (commands.folder / "signer" / "keys").exists()
    done = commands.run("init", "pin", *commands.token, folder="second")
    assert "appliance signer adopt" in done.stderr


@outside
def test_an_init_in_files_is_not_repeated_with_a_token_of_other_keys(commands: Commands) -> None:
    before = commands.call("init", "passphrase")
    assert "name it with --pkcs11" in commands.run("init", "pin", *commands.token).stderr, "the token is empty"
    assert commands.run("init", "pin", *commands.token, folder="second").returncode == 0
    for name in ("init", "show"):
        assert "as in the signer's record" in commands.run(name, "pin", *commands.token).stderr
    assert commands.call("show", "passphrase") == before


@outside
def test_the_command_moves_keys_from_files_into_a_token(commands: Commands) -> None:
    before = commands.call("init", "passphrase")
    moved = commands.call("move-keys", "passphrase", *commands.token, "--pin-file", str(commands.folder / "pin"))
    assert moved == {"moved": ["file:adapter", "file:log"]}
    assert commands.call("show", "pin", *commands.token) == before
    for name in ("init", "show"):
        assert "name it with --pkcs11" in commands.run(name, "pin").stderr
    assert list((commands.folder / "signer" / "keys").iterdir()) == []
