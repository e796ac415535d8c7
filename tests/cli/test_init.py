"""An appliance is made once: another home's log is not taken for its own, and what a cut left is as it was begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.config.load import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policy_files import assemble_policy
from appliance.errors import Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.trust import parse_trust
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.store.database.engine import open_engine
from appliance.store.ledger.ledger import Ledger
from appliance.wiring import installing
from tests.cli.conftest import Told, type_alone

ROOT = Path(__file__).resolve().parents[2]
CUT = "power: expected it to stay, got a cut"


@pytest.fixture
def init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Types `appliance init` for a home; the administrators are anna and ben unless others are named."""

    def act(home: str, *words: str, people: tuple[str, ...] = ("anna", "ben")) -> Told:
        named = []
        for name in people:
            path = tmp_path / f"{name}.pub"
            path.write_bytes(
                key_of(name).private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            )
            named += ["--administrator", f"{name.partition('-')[0]}={path}"]
        return type_alone(capsys, "init", "--home", str(tmp_path / home), *named, *words)

    return act


def key_of(name: str) -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"\0")))


def made_in(home: Path) -> set[str]:
    """What stands in a home, beside its lock and its database."""
    return {path.name for path in home.iterdir()} - {path.name for path in home.glob("ledger.db*")} - {"appliance.lock"}


def entries(home: Path) -> int:
    """How many the home's own log has."""
    engine, nobody = open_engine(load_settings(home, {}).database_url), cast(Any, None)
    with closing(Ledger(engine, origin="", log_key="", signers=nobody, clock=nobody)) as ledger:
        return sum(1 for _ in ledger.entries())


def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The power goes between the first entry and the trust file, until it is called."""

    def fail(*_: object) -> None:
        raise Unavailable(CUT)

    write = installing.write_file
    monkeypatch.setattr(installing, "write_file", fail)
    return lambda: monkeypatch.setattr(installing, "write_file", write)


def test_another_homes_log_is_not_taken_for_an_init_that_was_cut_off(
    init: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert init("one", "--origin", "bank.example/1").code == 0
    url = load_settings(tmp_path / "one", {}).database_url
    monkeypatch.setenv("APPLIANCE_DATABASE_URL", url)
    for words in (("--origin", "bank.example/1"), ("--origin", "bank.example/2"), ()):
        told = init("two", *words)
        assert (told.code, told.out) == (5, "")
        assert "got the log bank.example/1, whose keys" in told.err
        assert "give this home a database of its own" in told.err
    assert not (tmp_path / "two").exists(), "no key, no trust file"
    assert entries(tmp_path / "one") == 1
    monkeypatch.delenv("APPLIANCE_DATABASE_URL")
    assert init("two").code == 0


def test_a_home_that_lost_its_keys_and_its_trust_file_gets_no_others(init: Callable[..., Told], tmp_path: Path) -> None:
    home, keys = tmp_path / "one", tmp_path / "kept"
    told = init("one", "--origin", "bank.example/1")
    (home / "keys").rename(keys)
    (home / "trust.json").unlink()
    again = init("one", "--origin", "bank.example/1")
    assert (again.code, again.out) == (5, "")
    assert "put that log's keys back" in again.err
    assert made_in(home) == set()
    keys.rename(home / "keys")
    assert init("one", "--origin", "bank.example/1").out == told.out, "with its keys it is its own again"


def test_a_home_whose_log_is_gone_is_not_made_anew_over_its_trust_file(
    init: Callable[..., Told], tmp_path: Path
) -> None:
    home = tmp_path / "one"
    assert init("one").code == 0
    trust = (home / "trust.json").read_bytes()
    for path in home.glob("ledger.db*"):
        path.unlink()
    told = init("one")
    assert (told.code, told.out) == (5, "")
    assert (home / "trust.json").read_bytes() == trust
    assert not list(home.glob("ledger.db*"))


@pytest.mark.parametrize("words", [("--origin", "bank.example/1"), ()], ids=["origin", "any-origin"])
def test_an_init_that_was_cut_off_goes_on_only_as_what_it_began(
    init: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The first administrators and the first policy stand in the first entry, which nothing changes."""
    home = tmp_path / "one"
    power = cut(monkeypatch)
    told = init("one", *words)
    assert (told.code, CUT in told.err) == (7, True)
    power()
    left = made_in(home)
    stands, strict = digest(ROOT / "policies" / "default"), ROOT / "policies" / "strict-example"
    keyid = {name: key_of(name).keyid[:19] for name in ("anna", "ben", "anna-2", "carl")}
    refusals = [
        (("anna", "carl"), words, f"got anna ({keyid['anna']}), carl ({keyid['carl']})"),
        (("anna-2", "ben"), words, f"got anna ({keyid['anna-2']}), ben ({keyid['ben']})"),
        (("anna",), (*words, "--single-admin"), "single administrator: expected False, got True"),
        (("anna", "ben"), (*words, "--policy", str(strict)), f"policy set: expected {stands}, got {digest(strict)}"),
        (("anna", "ben"), ("--origin", "bank.example/9"), "got bank.example/9"),
    ]  # fmt: skip
    for people, more, reason in refusals:
        told = init("one", *more, people=people)
        assert (told.code, told.out) == (5, ""), more
        assert reason in told.err, told.err
        assert "Nothing was changed" in told.err
        if people != ("anna", "ben"):
            assert f"administrators: expected anna ({keyid['anna']}), ben ({keyid['ben']})" in told.err
    assert made_in(home) == left, "no trust file, and the keys that were there"
    told = init("one", *words)
    assert told.code == 0, told.err
    assert (home / "trust.json").read_text() == told.out
    assert parse_trust(told.out.encode()).administrators == tuple(
        (name, key_of(name).keyid) for name in ("anna", "ben")
    )
    assert json.loads(told.out)["origin"] == (words[1] if words else parse_trust(told.out.encode()).origin)
    assert entries(home) == 1
    assert init("one", *words).code == 5, "it is made"


def digest(folder: Path) -> str:
    """Of the policy set, as it is named after its folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return digest_bytes(encode_value(assemble_policy(folder.name, files)))
