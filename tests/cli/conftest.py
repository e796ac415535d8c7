"""The command line as a person types it: arguments in, exit code, stdout and stderr out, at a real socket."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.cli import main
from appliance.cli.support import output
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures import keys
from appliance.formats.signatures.keys import Ed25519Signer, encode_key_file
from tests.kit.founded import Template
from tests.kit.service import Service, running

PASSPHRASE = b"correct horse battery"

_derive_key = cache(keys._derive_key)


@pytest.fixture(autouse=True)
def derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt takes a fifth of a second for each passphrase and salt. The desk's key files have one salt for each name,
    so that it runs once for a name in a process instead of at each command that opens a key."""
    monkeypatch.setattr(keys, "_derive_key", _derive_key)


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str


class Desk:
    """A person's place: key files, a passphrase file, a trust file and the service behind the socket."""

    def __init__(self, service: Service, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.service = service
        self.site = service.site
        self.folder = folder
        self._capsys = capsys
        self._size = self.site.state.size
        self.passphrase = folder / "pass"
        self.passphrase.write_bytes(PASSPHRASE + b"\n")
        self.passphrase.chmod(0o600)
        self.trust = folder / "trust.json"
        self.trust.write_bytes(encode_trust(self.site.trust))

    def key(self, name: str) -> Path:
        path = self.folder / f"{name}.key"
        if not path.exists():
            signer = self.site.keys[name]
            assert isinstance(signer, Ed25519Signer)
            salt, nonce = hashlib.sha256(name.encode()).digest(), secrets.token_bytes(12)
            path.write_bytes(encode_key_file(signer.private, PASSPHRASE, salt=salt, nonce=nonce))
            path.chmod(0o600)
        return path

    def type(self, *words: str) -> Told:
        """Run a command, and return what the shell gets."""
        self._capsys.readouterr()
        code = main.run([str(word) for word in words])
        told = self._capsys.readouterr()
        return Told(code, told.out, told.err)

    def as_(self, name: str, *words: str) -> Told:
        """Run a command with this person's key and passphrase file."""
        return self.type(*words, *self.options(name))

    def ordered(self) -> int:
        """Count the orders since the desk was opened: reading opens sessions, which are entries, too."""
        new = range(self._size, self.site.state.size)
        return sum("order" in self.site.ledger.documents_of(index) for index in new)

    def options(self, name: str) -> list[str]:
        return ["--as", name, "--key", str(self.key(name)), "--passphrase-file", str(self.passphrase)]


@pytest.fixture
def open_desk(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str | Template], Desk]]:
    """`open_desk(stage)`: a service at that stage of the journey, or over that home, and a desk before it."""
    with ExitStack() as stack:

        def opened(at: str | Template) -> Desk:
            return Desk(stack.enter_context(running(at, home)), tmp_path, capsys)

        yield opened


class _Terminal:
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the output a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output, "sys", SimpleNamespace(stdout=_Terminal(), stderr=_Terminal()))


def type_alone(capsys: pytest.CaptureFixture[str], *words: str) -> Told:
    """Without a service."""
    capsys.readouterr()
    code = main.run([str(word) for word in words])
    told = capsys.readouterr()
    return Told(code, told.out, told.err)


def one_line(text: str) -> str:
    """Without what wrapped it to the terminal's width."""
    return " ".join(text.split())
