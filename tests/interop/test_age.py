"""Debian's own `age` opens a backup without the appliance, with keys that it made itself."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.backup import parse_index
from appliance.workflows.backups import making
from tests.kit.backups import on_sqlite

pytestmark = pytest.mark.outside


def run(*command: str | Path, data: bytes | None = None) -> bytes:
    done = subprocess.run([str(word) for word in command], input=data, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def people(tmp_path: Path) -> dict[str, str]:
    """Make people's identities with age-keygen, and return their public keys."""
    assert shutil.which("age"), "Debian's package age: .ci/run installs it"
    found = {}
    for name in ("data", "anna", "boris", "cleo"):
        run("age-keygen", "-o", tmp_path / f"{name}.txt")
        found[name] = run("age-keygen", "-y", tmp_path / f"{name}.txt").decode().strip()
    return found


def test_age_opens_the_manifest_s_index_every_file_and_the_keyring(tmp_path: Path, people: dict[str, str]) -> None:
    made = on_sqlite(tmp_path, "imported")
    keyring = (people["anna"], people["boris"], people["cleo"])
    backup = making.create(made.places, made.folder, making.Recipients((people["data"],), keyring), made.clock).backup
    objects = made.folder.path / "objects"

    def open_by(who: str, data: bytes) -> bytes:
        return run("age", "-d", "-i", tmp_path / f"{who}.txt", data=data)

    payload = json.loads((made.folder.path / f"{backup.name}.json").read_bytes())["payload"]
    statement = json.loads(run("base64", "-d", data=payload.encode()))
    index = parse_index(open_by("data", (objects / statement["predicate"]["index"]).read_bytes()))
    for file in index.files:
        assert digest_bytes(open_by("data", (objects / file.object).read_bytes())) == file.digest
    names = {key: name for name, key in people.items()}
    for pair in statement["predicate"]["keyring"]:
        stored = (objects / pair["object"]).read_bytes()
        packed = open_by(names[pair["inner"]], open_by(names[pair["outer"]], stored))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            log = archive.extractfile("keys/log.pem")
            assert log is not None and log.read() == (made.home / "keys/log.pem").read_bytes()
        for alone in ("data", names[pair["inner"]]):
            refused = subprocess.run(
                ["age", "-d", "-i", str(tmp_path / f"{alone}.txt")], input=stored, capture_output=True
            )
            assert refused.returncode != 0
