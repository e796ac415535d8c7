"""Two concurrent inits on one database found one appliance; the second one changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.core.names import encode_value
from appliance.domain.governance.policies import assemble_policy
from appliance.errors import Conflict
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import open_engine
from appliance.store.database.processes import claim_database
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from scripts.kit.appliance import ROOT
from scripts.kit.postgres import Server, postgres

pytestmark = pytest.mark.thorough

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database, as its owner."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.db'}"
        return
    server = cast(Server, request.getfixturevalue("postgres"))
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


def test_two_inits_at_once_make_one_appliance(url: str, tmp_path: Path) -> None:
    keys = []
    for name in ("anna", "ben"):
        path = tmp_path / f"{name}.pub"
        spki = generate_ed25519().private.public_key()
        path.write_bytes(spki.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        keys += ["--administrator", f"{name}={path}"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "APPLIANCE_DATABASE_URL": url,
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    homes = [tmp_path / f"h{number}" for number in range(3)]
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "appliance", "init", "--home", str(home), *keys],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, cwd=tmp_path,
        )
        for home in homes
    ]  # fmt: skip
    told = [(*process.communicate(timeout=120), process.returncode) for process in begun]
    assert sorted(code for _, _, code in told) == [0, Conflict.exit_code, Conflict.exit_code], told
    for home, (out, err, code) in zip(homes, told, strict=True):
        if code == 0:
            assert json.loads(out) == json.loads((home / "trust.json").read_text())
            assert entries(url) == 1
        else:
            assert out == "" and not home.exists(), list(home.iterdir())
            assert "nothing was changed" in err or "got the log" in err, err


def entries(url: str) -> int:
    engine, nobody = open_engine(url), cast(Any, None)
    with closing(Ledger(engine, origin="", log_key="", keys=HeldLogKeys(nobody), clock=nobody)) as ledger:
        return sum(1 for _ in ledger.entries())


def test_who_comes_while_another_begins_makes_no_key_and_no_file(url: str, tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "h", {"APPLIANCE_DATABASE_URL": url})
    policy = ROOT / "policies" / "default"
    people = [wiring.Person(name, generate_ed25519().spki) for name in ("anna", "ben")]

    def init() -> object:
        files = {path.name: path.read_bytes() for path in policy.iterdir()}
        return wiring.init(
            settings,
            people,
            origin=None,
            single_administrator=False,
            policy=encode_value(assemble_policy("default", files)),
        )

    with claim_database(open_engine(url)):
        with pytest.raises(Conflict, match=r"another process .* nothing was changed") as caught:
            init()
        assert caught.value.code == "locked"
        assert not settings.home.exists()
        settings.home.mkdir()
        (settings.home / "appliance.toml").write_text("")
        with pytest.raises(Conflict):
            init()
        assert {path.name for path in settings.home.iterdir()} <= {"appliance.toml", "appliance.lock"}
    assert init() is not None
