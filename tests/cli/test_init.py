"""An appliance is initialised once; an interrupted init continues only with the same request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import SCHEMA, assemble_policy
from appliance.errors import Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.trust import parse_trust
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.store.database.engine import open_engine
from appliance.store.files.keyring import POST_QUANTUM_ADAPTER_KEY, Keyring
from appliance.store.files.lock import lock_folder
from appliance.store.ledger.keys import HeldLogKeys
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
    """List the files in a home, except its lock and its database."""
    return {path.name for path in home.iterdir()} - {path.name for path in home.glob("ledger.db*")} - {"appliance.lock"}


def entries(home: Path) -> int:
    """How many the home's own log has."""
    engine, nobody = open_engine(load_settings(home, {}).database_url.get_secret_value()), cast(Any, None)
    with closing(Ledger(engine, origin="", log_key="", keys=HeldLogKeys(nobody), clock=nobody)) as ledger:
        return sum(1 for _ in ledger.entries())


def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fail between the first entry and the trust file, as in a power cut, until the returned function is called."""

    def fail(*_: object) -> None:
        raise Unavailable(CUT)

    write = installing.write_file
    monkeypatch.setattr(installing, "write_file", fail)
    return lambda: monkeypatch.setattr(installing, "write_file", write)


@pytest.mark.thorough
def test_another_homes_log_is_not_taken_for_an_init_that_was_cut_off(
    init: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert init("one", "--origin", "bank.example/1").code == 0
    url = load_settings(tmp_path / "one", {}).database_url.get_secret_value()
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


def test_an_appliance_whose_trust_file_has_no_place_is_not_made(init: Callable[..., Told], tmp_path: Path) -> None:
    """Otherwise its log would exist, and typing the command again would be refused."""
    file = tmp_path / "trust.json"
    file.write_text("of another appliance")
    told = init("one", "--output", str(file))
    assert (told.code, told.out) == (5, "") and "expected a name that is free" in told.err
    assert not (tmp_path / "one").exists() and file.read_text() == "of another appliance"
    assert init("one", "--output", str(tmp_path / "none" / "trust.json")).code == 2
    assert not (tmp_path / "one").exists()
    assert init("one", "--output", str(tmp_path / "other.json")).code == 0
    with lock_folder(tmp_path / "one" / "appliance.lock"):  # as a service that runs
        told = init("one")
    assert (told.code, told.out) == (5, "") and "got one with a ledger; name another folder with --home" in told.err


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


@pytest.mark.thorough
@pytest.mark.parametrize("words", [("--origin", "bank.example/1"), ()], ids=["origin", "any-origin"])
def test_an_init_that_was_cut_off_continues_only_as_what_it_began(
    init: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The first administrators and the first policy are in the first entry, which cannot be changed."""
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


def test_another_account_than_the_home_s_owner_makes_nothing(
    init: Callable[..., Told], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root forgot to become the service's account, which could use none of the files that root makes."""
    assert init("home").code == 0
    (tmp_path / "empty").mkdir(mode=0o700)
    before, owner = sorted((tmp_path / "home").iterdir()), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    home, backups = str(tmp_path / "home"), str(tmp_path / "backups")
    (tmp_path / "backups").mkdir(mode=0o700)
    refused = [
        init("empty"),
        type_alone(capsys, "serve", "--home", home),
        type_alone(capsys, "database", "check", "--home", home),
        type_alone(capsys, "database", "migrate", "--home", home),
        type_alone(capsys, "backup", "create", "--home", home, backups),
        type_alone(capsys, "backup", "list", "--home", home, backups),
        type_alone(capsys, "backup", "verify", "--home", home, backups),
        type_alone(capsys, "backup", "remove", "--home", home, backups, "20261129T013000Z"),
        type_alone(capsys, "backup", "confirm", "--home", home, "--yes"),
        type_alone(capsys, "diagnose", "--home", home, str(tmp_path / "diagnosis.json"), "--yes"),
    ]
    for told in refused:
        assert told.code == 3 and f"expected the account that owns it, user id {owner}" in told.err, told.err
    assert sorted((tmp_path / "home").iterdir()) == before and list((tmp_path / "empty").iterdir()) == []
    assert list((tmp_path / "backups").iterdir()) == [] and not (tmp_path / "diagnosis.json").exists()
    found = {
        one["check"]: one for one in json.loads(type_alone(capsys, "doctor", "--home", home, "--json").out)["findings"]
    }
    assert found["account"]["level"] == "warn" and "ledger" not in found


def test_an_administrator_is_named_by_the_public_key_alone(
    init: Callable[..., Told], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service's machine must not have a key file of a person."""
    (tmp_path / "pass").write_text("correct horse battery\n")
    (tmp_path / "pass").chmod(0o600)
    key = str(tmp_path / "carl.key")
    assert type_alone(capsys, "key", "new", key, "--passphrase-file", str(tmp_path / "pass")).code == 0
    told = init("home", "--administrator", f"carl={key}")
    assert told.code == 2 and "expected the public key, such as carl.pub, got the key file" in told.err, told.err
    assert not (tmp_path / "home").exists()
    assert init("home", "--administrator", f"carl={key.removesuffix('.key')}.pub").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--origin", "bad origin"), "origin: expected lower-case letters"),
        (("--administrator", "anna={}/carl.pub"), "administrators: expected different names, got anna twice"),
        (("--administrator", "carl={}/anna.pub"), "a key of each person's own, got the same one for anna and carl"),
        (("--administrator", "service={}/carl.pub"), "expected another name than that of the service"),
    ],
)
def test_what_the_first_entry_cannot_have_is_refused_before_anything_is_made(
    words: tuple[str, str], said: str, init: Callable[..., Told], tmp_path: Path
) -> None:
    (tmp_path / "carl.pub").write_bytes(
        key_of("carl").private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    told = init("home", words[0], words[1].format(tmp_path))
    assert told.code == 2 and said in told.err, told.err
    assert not (tmp_path / "home").exists()


def digest(folder: Path) -> str:
    """Of the policy set, as it is named after its folder."""
    files = {path.name: path.read_bytes() for path in (ROOT / "policies" / "default" / SCHEMA, *folder.iterdir())}
    return digest_bytes(encode_value(assemble_policy(folder.name, files)))


def test_an_appliance_can_begin_with_post_quantum_keys(
    init: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted init continues with the same keys, if they are requested again."""
    power = cut(monkeypatch)
    assert init("one", "--post-quantum").code == 7
    power()
    told = init("one")
    assert (told.code, "post-quantum keys: expected True, got False" in told.err) == (5, True)
    told = init("one", "--post-quantum")
    assert told.code == 0, told.err
    trust = parse_trust(told.out.encode())
    second, first = trust.log_keys
    assert trust.post_quantum_log_key == second
    keyring = Keyring(tmp_path / "one" / "keys")
    assert {first, second} == set(keyring.log_signers(trust.origin))
    assert keyring.open_signer(POST_QUANTUM_ADAPTER_KEY).spki
