"""Go's own checksum-database code verifies a real log of ours, with a witness's line, and refuses flipped bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.log.export import write_export
from appliance.formats.log.note import vkey_of
from appliance.formats.log.proof import Proof, WitnessRequest, encode_proof, encode_request
from appliance.formats.signatures.keys import generate_ed25519
from appliance.store.database.engine import migrate, open_engine
from appliance.witness import Witness, cosign_file
from tests.kit.small_log import ORIGIN, SmallLog

pytestmark = pytest.mark.thorough

SOURCES = Path(__file__).parent / "verify"
DEBIAN = Path("/usr/share/gocode")
NAME = "witness.example/w1"
Verify = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Verify:
    """`verify(command, vkey, *files)`: the Go program, built offline from Debian's packages."""
    go = shutil.which("go")
    if go is None or not (DEBIAN / "src/golang.org/x/mod/sumdb").is_dir():
        pytest.skip("Go: expected golang-go and golang-golang-x-mod-dev, got none")
    cache = getattr(request.config, "cache", None)
    kept = cache.mkdir("go-build") if cache is not None else tmp_path_factory.mktemp("go-build")
    program = tmp_path_factory.mktemp("go") / "verify"
    settings = {
        "GO111MODULE": "off",
        "GOPATH": str(DEBIAN),
        "GOFLAGS": "",
        "GOCACHE": str(kept),
        "GOTOOLCHAIN": "local",
    }
    subprocess.run([go, "build", "-o", program, "."], check=True, cwd=SOURCES, timeout=600, env=os.environ | settings)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60)

    return run


@dataclass(frozen=True)
class Carried:
    """What leaves the appliance, as files."""

    log_key: str
    witness_key: str
    before: Path
    request: Path
    cosigned: Path
    proof: Path
    entry: Path
    export: Path


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Seven entries in a ledger on SQLite, a checkpoint after three, and a witness who saw both."""
    folder = tmp_path_factory.mktemp("carried")
    engine = open_engine(f"sqlite:///{folder / 'ledger.db'}")
    migrate(engine)
    site = SmallLog()
    ledger = site.open_ledger(engine)
    drafts = [site.first_draft()]
    for name in ("carol", "dave", "erin"):
        enrolment = site.enrolment(name)
        drafts += [enrolment.pending, enrolment.enrolled]
    files = Carried(
        site.log_key,
        witness_vkey_of(NAME, key := generate_ed25519()),
        *(folder / name for name in ("before", "request", "cosigned", "proof", "entry", "export")),
    )
    witness = Witness(NAME, key, site.log_key)
    for draft in drafts[:3]:
        ledger.append(draft)
    files.before.write_bytes(ledger.checkpoint())
    files.request.write_bytes(encode_request(WitnessRequest(0, (), ledger.checkpoint())))
    cosign_file(files.request, folder / "state", None, witness, first=True)
    for draft in drafts[3:]:
        ledger.append(draft)
    size, proof = 7, tuple(ledger.consistency_proof(3, 7))
    files.request.write_bytes(encode_request(WitnessRequest(3, proof, ledger.checkpoint())))
    cosigned = cosign_file(files.request, folder / "state", files.cosigned, witness)
    files.proof.write_bytes(encode_proof(Proof(4, tuple(ledger.inclusion_proof(4, size)), cosigned)))
    files.entry.write_bytes(ledger.entry_bytes(4))
    tar = write_export(
        origin=ORIGIN,
        size=size,
        checkpoint=cosigned,
        entries=lambda: ledger.entries(0, size),
        document=ledger.document,
        disclosures=ledger.disclosures,
    )
    files.export.write_bytes(b"".join(tar))
    ledger.close()
    engine.dispose()
    return files


def holds(done: subprocess.CompletedProcess[str], fact: str) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(fact)


def flip(path: Path, place: int, folder: Path) -> Path:
    """Copy the file with the lowest bit of one byte changed."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    copy = folder / path.name
    copy.write_bytes(data)
    return copy


def reworded(path: Path, old: bytes, new: bytes, folder: Path) -> Path:
    copy = folder / path.name
    copy.write_bytes(path.read_bytes().replace(old, new, 1))
    return copy


def places(path: Path, *words: bytes) -> list[int]:
    """Return a place in the middle of each word."""
    data = path.read_bytes()
    return [data.index(word) + len(word) // 2 for word in words]


def test_the_log_signed_the_checkpoint_and_the_witness_s_line_is_one_of_others(
    verify: Verify, carried: Carried
) -> None:
    holds(verify("checkpoint", carried.log_key, carried.before), "size 3, root ")
    done = verify("checkpoint", carried.log_key, carried.cosigned)
    holds(done, "size 7, root ")
    assert done.stdout.endswith(", 1 lines of others\n")


def test_a_checkpoint_with_a_flipped_byte_or_under_another_key_is_refused(
    verify: Verify, carried: Carried, tmp_path: Path
) -> None:
    text, signature = carried.before.read_bytes().split(b"\n\n")
    for place in places(carried.before, *text.split(b"\n"), signature.split(b" ")[2]):
        assert verify("checkpoint", carried.log_key, flip(carried.before, place, tmp_path)).returncode == 1
    assert verify("checkpoint", vkey_of(ORIGIN, generate_ed25519()), carried.before).returncode == 1


def test_the_witness_cosigned_it(verify: Verify, carried: Carried, tmp_path: Path) -> None:
    holds(verify("cosignature", carried.witness_key, carried.cosigned), "time 1")
    text, signatures = carried.cosigned.read_bytes().split(b"\n\n")
    for place in places(carried.cosigned, *text.split(b"\n"), signatures.splitlines()[1].split(b" ")[2]):
        assert verify("cosignature", carried.witness_key, flip(carried.cosigned, place, tmp_path)).returncode == 1
    assert verify("cosignature", carried.witness_key, carried.before).returncode == 1
    assert verify("cosignature", witness_vkey_of(NAME, generate_ed25519()), carried.cosigned).returncode == 1


def test_an_entry_stands_in_the_log(verify: Verify, carried: Carried, tmp_path: Path) -> None:
    holds(verify("record", carried.log_key, carried.proof, carried.entry), "entry 4 of 7")
    for place in (0, 100, -1):
        assert verify("record", carried.log_key, carried.proof, flip(carried.entry, place, tmp_path)).returncode == 1
    lines = carried.proof.read_bytes().split(b"\n\n")[0].split(b"\n")
    for place in places(carried.proof, *lines):
        assert verify("record", carried.log_key, flip(carried.proof, place, tmp_path), carried.entry).returncode == 1
    elsewhere = reworded(carried.proof, b"index 4\n", b"index 5\n", tmp_path)
    assert verify("record", carried.log_key, elsewhere, carried.entry).returncode == 1


def test_the_later_checkpoint_continues_the_earlier(verify: Verify, carried: Carried, tmp_path: Path) -> None:
    holds(verify("tree", carried.log_key, carried.before, carried.request), "7 continues 3")
    lines = carried.request.read_bytes().split(b"\n\n")[0].split(b"\n")
    assert len(lines) > 2
    for place in places(carried.request, *lines):
        assert verify("tree", carried.log_key, carried.before, flip(carried.request, place, tmp_path)).returncode == 1
    elsewhere = reworded(carried.request, b"old 3\n", b"old 2\n", tmp_path)
    assert verify("tree", carried.log_key, carried.before, elsewhere).returncode == 1


def test_the_root_is_that_of_all_entries_of_the_export(verify: Verify, carried: Carried, tmp_path: Path) -> None:
    holds(verify("export", carried.log_key, carried.export), "7 entries, root ")
    root = carried.cosigned.read_bytes().split(b"\n")[2]
    entry = carried.entry.read_bytes()
    for place in places(carried.export, entry, root):
        assert verify("export", carried.log_key, flip(carried.export, place, tmp_path)).returncode == 1
    blanked = reworded(carried.export, entry, b" " * len(entry), tmp_path)
    assert verify("export", carried.log_key, blanked).returncode == 1
