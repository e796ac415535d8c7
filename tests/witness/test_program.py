"""The witness's program as it is typed: as a zipapp with `cryptography` alone, and as the command line's group."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import witness as program
from appliance.cli.main import run as run_appliance
from appliance.formats.log.checkpoint import parse_witness_vkey, verify_cosignature
from appliance.formats.log.note import parse_note
from appliance.formats.signatures.keys import parse_key_file
from tests.verifier.test_program import OTHERS, WITHOUT_THE_REST
from tests.witness.bench import FORK, LOG, LOG_VKEY, NAME, Desk

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = b"correct horse battery"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")
    secret.chmod(0o600)
    return desk


def typed(desk: Desk, *words: str) -> list[str]:
    """Return the words of a cosign command."""
    folder = desk.state.parent
    return [
        *("cosign", str(desk.request), "--key", str(folder / "w1.key"), "--name", NAME, "--log", LOG_VKEY),
        *("--state", str(desk.state), "--passphrase-file", str(folder / "passphrase"), *words),
    ]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def new_key(desk: Desk, capsys: pytest.CaptureFixture[str]) -> str:
    folder = desk.state.parent
    code, out, _ = run(
        capsys, "new-key", str(folder / "w1.key"), "--name", NAME, "--passphrase-file", str(folder / "passphrase")
    )
    assert code == 0
    return out.strip()


@pytest.mark.thorough
def test_a_key_is_made_once_and_its_vkey_printed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    vkey = new_key(desk, capsys)
    path = desk.state.parent / "w1.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert parse_witness_vkey(vkey).spki == parse_key_file(path.read_bytes(), PASSPHRASE).spki
    assert run(capsys, "vkey", str(path), "--name", NAME)[:2] == (0, f"{vkey}\n")
    code, _, err = run(
        capsys, "new-key", str(path), "--name", NAME, "--passphrase-file", str(path.with_name("passphrase"))
    )
    assert (code, "expected a name that is free" in err) == (5, True)


def test_a_short_passphrase_and_a_bad_name_make_no_key(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    path = desk.state.parent / "w1.key"
    secret = path.with_name("passphrase")
    assert run(capsys, "new-key", str(path), "--name", "two words", "--passphrase-file", str(secret))[0] == 2
    secret.write_bytes(b"short\n")
    assert run(capsys, "new-key", str(path), "--name", NAME, "--passphrase-file", str(secret))[0] == 2
    assert not path.exists()


@pytest.mark.thorough
def test_cosigning_prints_what_was_said_and_every_refusal_has_its_exit_code(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    vkey = new_key(desk, capsys)
    desk.bring(LOG.request(0, 7))
    assert run(capsys, *typed(desk))[0] == 4, "no state yet"
    code, out, err = run(capsys, *typed(desk, "--first"))
    assert code == 0
    assert verify_cosignature(parse_note(out.encode()), vkey) > 1_700_000_000
    assert "size  7" in err and "log.example/one" in err
    desk.bring(LOG.request(0, 9))
    assert run(capsys, *typed(desk))[0] == 5, "not what was seen last"
    desk.bring(FORK.request(7, 9))
    code, out, err = run(capsys, *typed(desk))
    assert (code, out, err.count("\n")) == (6, "", 1)
    desk.bring(b"nothing")
    assert run(capsys, *typed(desk))[0] == 2
    (desk.state.parent / "passphrase").write_bytes(b"another passphrase\n")
    assert run(capsys, *typed(desk))[0] == 3


def test_a_passphrase_that_others_can_read_is_refused(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    new_key(desk, capsys)
    desk.bring(LOG.request(0, 7))
    for name in ("passphrase", "w1.key"):
        (desk.state.parent / name).chmod(0o644)
        code, _, err = run(capsys, *typed(desk, "--first"))
        assert (code, "expected mode 0600" in err) == (3, True)
        (desk.state.parent / name).chmod(0o600)


def test_a_passphrase_may_be_typed(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(desk.state.parent / "w2.key")
    answers = iter([PASSPHRASE.decode(), "something else", PASSPHRASE.decode(), PASSPHRASE.decode()])
    monkeypatch.setattr(program.getpass, "getpass", lambda prompt: next(answers))
    code, _, err = run(capsys, "new-key", path, "--name", NAME)
    assert (code, "expected the same twice" in err) == (2, True)
    assert run(capsys, "new-key", path, "--name", NAME)[0] == 0


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zipapp")
    subprocess.run([sys.executable, ROOT / "scripts/zipapp", "--output", folder], check=True, capture_output=True)
    return folder / "appliance-witness.pyz"


def run_zipapp(zipapp: Path, refused: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_THE_REST.format(refused=refused, arguments=list(arguments), zipapp=str(zipapp))
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", timeout=60
    )


@pytest.mark.thorough
def test_the_zipapp_cosigns_with_cryptography_alone(
    zipapp: Path, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    new_key(desk, capsys)
    desk.bring(LOG.request(0, 7))
    done = run_zipapp(zipapp, (*OTHERS, "pydantic"), *typed(desk, "--first", "--output", str(desk.out)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert desk.out.read_bytes() == desk.state.read_bytes()
    modules, kept = done.stdout.splitlines()
    loaded = {name.split(".")[1] for name in modules.split()[1:] if "." in name}
    assert loaded == {"build", "errors", "formats", "witness"}
    assert all(name.startswith(str(zipapp)) for name in kept.split()[1:]), "nothing came from another place"


def test_the_zipapp_says_which_library_is_missing(zipapp: Path, desk: Desk) -> None:
    done = run_zipapp(zipapp, ("cryptography",), "vkey", "w1.key", "--name", NAME)
    assert done.returncode == 7
    assert done.stderr == "appliance-witness: expected the library cryptography, got no cryptography\n"


@pytest.mark.thorough
def test_the_command_line_does_the_same_with_a_person_s_key(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.state.parent
    secret = ["--passphrase-file", str(folder / "passphrase")]
    assert run_appliance(["key", "new", str(folder / "w1.key"), *secret]) == 0
    capsys.readouterr()
    assert run_appliance(["witness", "vkey", str(folder / "w1.key"), "--name", NAME]) == 0
    vkey = capsys.readouterr().out.strip()
    assert run_appliance(["witness", "vkey", str(folder / "w1.pub"), "--name", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": NAME, "vkey": vkey}
    desk.bring(LOG.request(0, 7))
    assert run_appliance(["witness", *typed(desk)]) == 4
    capsys.readouterr()
    assert run_appliance(["witness", *typed(desk, "--first")]) == 0
    assert verify_cosignature(parse_note(capsys.readouterr().out.encode()), vkey) > 0
    desk.bring(LOG.request(7, 9))
    assert run_appliance(["witness", *typed(desk, "--output", str(desk.out), "--json")]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == desk.out.read_text(encoding="utf-8")
