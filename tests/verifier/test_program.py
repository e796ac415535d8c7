"""The auditor's program, as a zipapp and as a function: what it prints, and the exit code it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import verifier
from appliance.domain.audit.report import Report
from appliance.domain.core import signatures
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.queries.proofs import encode_entry_proof
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.errors import NotFound
from appliance.formats.log.export import write_export
from appliance.formats.log.note import encode_note, parse_note
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures import ml_dsa
from scripts.kit.authenticator import PLACE
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.kit.cedar_policies import permitting
from tests.kit.entry_proofs import entry_proof_of
from tests.kit.evaluated_release import adapter_of

ROOT = Path(__file__).resolve().parents[2]
CEDAR_POLICIES = permitting()


def export_of(site: LogBuilder, *, entries: list[bytes] | None = None, size: int | None = None) -> bytes:
    kept = site.entries if entries is None else entries
    texts = {disclosure.commitment: disclosure for disclosure in site.disclosures}

    def document(digest: str) -> bytes:
        if digest not in site.documents:
            raise NotFound(digest)
        return site.documents[digest]

    return b"".join(
        write_export(
            origin=ORIGIN,
            size=len(kept) if size is None else size,
            checkpoint=site.checkpoint(),
            entries=lambda: iter(kept),
            document=document,
            disclosures=lambda wanted: {name: texts[name] for name in wanted if name in texts},
        )
    )


class Files:
    def __init__(self, folder: Path) -> None:
        self.site = stage("serving", CEDAR_POLICIES)
        self.export = folder / "ledger.tar"
        self.trust = folder / "trust.json"
        self.export.write_bytes(export_of(self.site))
        self.trust.write_bytes(encode_trust(self.site.trust))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        verifier.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, said.out, said.err


def test_a_whole_log_is_verified_and_the_counts_are_printed(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 0
    assert out.splitlines()[0].split() == ["verdict", "verified"]
    assert f"{len(files.site.entries)} of {len(files.site.entries)} replayed" in out
    assert "\nCedar policies replayed; orders that they allow: " in out


def test_json_carries_the_whole_report(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, files.export, "--trust", files.trust, "--json")
    report = json.loads(out)
    assert (code, report["verdict"], report["cedar_policies"]) == (0, "verified", "replayed")
    assert report["counts"]["entries"] == len(files.site.entries)
    assert report["counts"]["signatures"] > report["counts"]["orders"] > 0
    assert report["counts"]["decisions"] > 0
    assert report["trust"]["genesis"] == files.site.trust.genesis
    assert report["groups"] == []


def test_without_a_trust_file_a_whole_log_is_unverifiable(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, files.export)
    assert code == 7
    assert "no trust file given" in out


def test_another_logs_trust_file_fails(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(encode_trust(LogBuilder().trust))
    code, out, _ = run(capsys, files.export, "--trust", other)
    assert code == 6
    assert (
        "this is not the log that it names: first entry 0, hash" in out and "the log's signature does not hold" in out
    )


def test_an_edited_entry_is_named(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    entries = list(files.site.entries)
    entries[9] = entries[9].replace(b'"source":"unix"', b'"source":"tcp"')
    files.export.write_bytes(export_of(files.site, entries=entries))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6
    assert out.startswith(
        "verdict        failed: entry 9 is the first that does not hold\nfinding        an entry was "
    )
    assert "entry 9: expected the hash" in out
    _, out, _ = run(capsys, files.export, "--trust", files.trust, "--all")
    assert "[chain] entry 9: expected the hash" in out


def test_an_export_cut_to_fewer_entries_says_both_sizes(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    size = len(files.site.entries)
    files.export.write_bytes(export_of(files.site, entries=files.site.entries[:-3]))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert code == 6
    assert f"expected {size} entries, as the checkpoint says, got {size - 3}" in out


def test_an_export_that_lies_about_its_size_fails(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.export.write_bytes(export_of(files.site, size=99))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert (code, "do not fit together: export.json, size: expected 99" in out) == (6, True)


def test_an_empty_log_is_unverifiable(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    site = files.site
    site.entries = []
    files.export.write_bytes(export_of(site))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert (code, "entries: there are none" in out) == (7, True)


def test_a_single_administrator_is_shouted(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    site = LogBuilder(single=True, policy=CEDAR_POLICIES)
    files.export.write_bytes(export_of(site))
    files.trust.write_bytes(encode_trust(site.trust))
    code, out, _ = run(capsys, files.export, "--trust", files.trust)
    assert (code, "ONE ADMINISTRATOR" in out) == (0, True)


@pytest.mark.parametrize("what", ["missing", "no tar", "empty", "trust missing", "trust wrong"])
def test_bad_input_ends_with_2_and_one_line(what: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    data = files.export.read_bytes()
    files.export.write_bytes({"no tar": b"not a tar", "empty": b""}.get(what, data))
    if what == "missing":
        files.export.unlink()
    if what == "trust missing":
        files.trust.unlink()
    if what == "trust wrong":
        files.trust.write_bytes(b"{}\n")
    code, out, err = run(capsys, files.export, "--trust", files.trust)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("appliance-verify: ") and "expected" in err


def test_the_help_has_examples_and_exit_codes_apart(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "\nexamples:\n  appliance-verify ledger.tar --trust trust.json\n" in out
    assert "\nexit codes:\n  0  verified\n  2  " in out
    assert "python3 -m pip install cedarpy" in out and "--without-cedar-policies" in out
    for exit_code in set(verifier.EXITS.values()):
        assert f"\n  {exit_code}  " in out


def test_a_hostile_logs_words_do_not_move_the_cursor(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert verifier._escape("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"


# The zipapp.

WITHOUT_THE_REST = """
import sys, runpy
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"no {{name}} on this machine", name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["appliance-verify", *{arguments!r}]
try:
    runpy.run_path({zipapp!r}, run_name="__main__")
finally:
    print("MODULES", " ".join(sorted(m for m in sys.modules if m.startswith("appliance"))))
    print("FILES", " ".join(sorted({{str(getattr(m, "__file__", "")) for n, m in sys.modules.items()
                                     if n.startswith("appliance")}})))
"""
OTHERS = ("torch", "transformers", "sqlalchemy", "cedarpy", "fastapi", "click", "httpx", "yaml", "alembic", "numpy")


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zipapp")
    subprocess.run([sys.executable, ROOT / "scripts/zipapp", "--output", folder], check=True, capture_output=True)
    return folder / "appliance-verify.pyz"


def run_zipapp(zipapp: Path, refused: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_THE_REST.format(refused=refused, arguments=[str(a) for a in arguments], zipapp=str(zipapp))
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", timeout=60
    )


@pytest.mark.essential
def test_the_zipapp_verifies_with_cryptography_and_pydantic_alone(zipapp: Path, files: Files) -> None:
    done = run_zipapp(zipapp, OTHERS, files.export, "--trust", files.trust, "--without-cedar-policies")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("verdict        verified, without Cedar policies\n")
    *_, modules, kept = done.stdout.splitlines()
    rooms = {name.split(".")[1] for name in modules.split()[1:] if "." in name}
    assert rooms == {"build", "errors", "formats", "domain", "verifier"}
    assert all(name.startswith(str(zipapp)) for name in kept.split()[1:]), "nothing came from another place"


@pytest.mark.thorough
@pytest.mark.parametrize("origin", [PLACE, f"{PLACE}:9999"])
def test_the_zipapp_checks_a_passkeys_assertion_without_another_library(
    zipapp: Path, tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at the enrolled origin, and one at another port, which a service recorded that did not look."""
    site = stage("sealed", CEDAR_POLICIES)
    passkey = site.enrol_passkey("rita")
    with monkeypatch.context() as patch:
        if origin != PLACE:
            patch.setattr(signatures, "verify_envelope", lambda *_: None)
        site.keys["rita"] = passkey.wrong(origin=origin)
        site.review("rita", "privacy")
    export, trust = tmp_path / "ledger.tar", tmp_path / "trust.json"
    export.write_bytes(export_of(site))
    trust.write_bytes(encode_trust(site.trust))
    done = run_zipapp(zipapp, (*OTHERS, "webauthn"), export, "--trust", trust, "--without-cedar-policies")
    if origin == PLACE:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode == 6
        assert f"passkey signature, origin: expected {PLACE}, got '{origin}'" in " ".join(done.stdout.split())


@pytest.mark.thorough
def test_the_zipapp_without_cedar_says_what_was_not_checked(zipapp: Path, files: Files) -> None:
    done = run_zipapp(zipapp, OTHERS, files.export, "--trust", files.trust)
    assert done.returncode == 7 and "Cedar policies: not replayed" in done.stdout, done.stdout + done.stderr


@pytest.mark.thorough
def test_the_zipapp_replays_the_sites_policies_where_cedar_is(zipapp: Path, files: Files) -> None:
    others = tuple(name for name in OTHERS if name != "cedarpy")
    done = run_zipapp(zipapp, others, files.export, "--trust", files.trust)
    assert done.returncode == 0 and done.stdout.startswith("verdict        verified\n"), done.stdout + done.stderr
    *_, kept = done.stdout.splitlines()
    assert all(name.startswith(str(zipapp)) for name in kept.split()[1:]), "nothing came from another place"


def test_the_zipapp_says_which_library_is_missing(zipapp: Path, files: Files) -> None:
    done = run_zipapp(zipapp, ("pydantic",), files.export)
    assert done.returncode == 7
    assert done.stderr.startswith("appliance-verify: expected the libraries cryptography and pydantic, got no pydantic")


@pytest.mark.thorough
def test_the_zipapp_fails_on_a_broken_log(zipapp: Path, files: Files) -> None:
    files.export.write_bytes(export_of(files.site, entries=files.site.entries[:-1]))
    assert run_zipapp(zipapp, OTHERS, files.export, "--trust", files.trust).returncode == 6


def test_the_same_sources_give_the_same_zipapp(zipapp: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/zipapp", "--output", tmp_path], check=True, capture_output=True)
    for name in ("appliance-verify.pyz", "appliance-witness.pyz"):
        assert (tmp_path / name).read_bytes() == (zipapp.parent / name).read_bytes()


@pytest.mark.thorough
def test_an_auditor_learns_from_the_export_alone_what_a_unit_could_load(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    query = (files.export, "--trust", files.trust, "--effective-access", "legal")
    code, out, _ = run(capsys, *query)
    assert code == 0 and re.search(r"The approval of entry \d+ expired at 2026-", out), (
        "the log is from January: now its approvals have lapsed"
    )
    code, out, _ = run(capsys, *query, "--at", len(files.site.entries) - 1)
    assert code == 0
    assert "  labels: could load clauses@1\n" in out and "    manifest: sha256:" in out
    assert re.search(r"    approved: entry \d+, by rita, for privacy, until", out)
    released = next(parse_entry(d).index for d in files.site.entries if parse_entry(d).type == "release.activated")
    code, out, _ = run(capsys, *query, "--at", released - 1)
    assert code == 0 and "  not released: could not load clauses@1\n" in out
    assert "    refused: No release names adapter clauses@1 for this unit." in out
    code, out, _ = run(capsys, *query, "--at", "2026-01-15T09:30:00.000Z", "--json")
    assert code == 0 and json.loads(out)["effective_access"]["served_models"] == []
    for at in ("2026-01-15", "2026-01-15T10:30+01:00", "2026-01-15 09:30:00Z"):
        code, out, _ = run(capsys, *query, "--at", at)
        assert code == 0 and "legal at 2026-01-15T" in out, out
    assert run(capsys, *query, "--at", "1h")[0] == 0
    assert run(capsys, *query, "--at", "2026-01-15T09:30:00")[0] == 2, "without a zone it is two times"
    assert run(capsys, *query, "--at", "yesterday")[0] == 2
    code, out, _ = run(capsys, *query, "--at", "2020-11-24")
    first = parse_entry(files.site.entries[0]).time
    assert code == 0 and out.startswith("verdict        verified") and f"  nothing: the log begins on {first}\n" in out
    assert run(capsys, *query, "--at", 10_000)[0] == 2


@pytest.mark.thorough
def test_an_export_answers_for_a_span_and_names_the_date_that_ended_an_approval(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    query = (files.export, "--trust", files.trust, "--effective-access", "legal")
    entries = [parse_entry(data) for data in files.site.entries]
    released = next(entry for entry in entries if entry.type == "release.activated")
    ends = [review.valid_until for review in adapter_of(files.site).reviews]
    code, out, _ = run(capsys, *query, "--since", 0)
    assert code == 0 and f"from {entries[0].time}, as of entry 0:\n    nothing: no adapter was released" in out
    assert (
        f"from {released.time}, as of entry {released.index}:\n    labels: could load clauses@1; released by otto"
        in out
    )
    assert (
        f"from {min(filter(None, ends))}, as of entry {len(entries) - 1}:\n    labels: could not load clauses@1" in out
    )
    code, out, _ = run(capsys, *query, "--since", entries[0].time[:10], "--until", entries[0].time[:10])
    assert code == 0 and f"from {released.time}, as of entry {released.index}:" in out, "a day begins with its midnight"
    code, out, _ = run(capsys, *query, "--since", released.index, "--until", len(entries) - 1, "--json")
    (period,) = json.loads(out)["effective_access"]["periods"]
    assert (code, period["as_of"]) == (0, released.index)
    for words in (("--until", "now"), ("--since", 0, "--at", 3), ("--since", 10_000), ("--since", "2199-01-01")):
        assert run(capsys, *query, *words)[0] == 2, words
    assert run(capsys, files.export, "--since", 0)[0] == 2, "without a unit"


@pytest.mark.thorough
def test_a_unit_that_the_log_never_had_is_an_error_and_the_nearest_is_named(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in ((), ("--at", "2020-11-24")):
        code, out, err = run(capsys, files.export, "--trust", files.trust, "--effective-access", "lgal", *at)
        assert (code, out) == (2, "") and "got 'lgal'; did you mean legal?" in err


@pytest.mark.thorough
def test_a_reader_that_leaves_early_changes_no_exit_code_and_causes_no_traceback(files: Files) -> None:
    program = (sys.executable, "-m", "appliance.verifier", str(files.export), "--trust", str(files.trust))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.thorough
def test_an_auditor_learns_of_the_folder_that_no_revocation_reaches(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    site = files.site
    exported = site.export()
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "rita", **site.on_adapter()))
    files.export.write_bytes(export_of(site))
    query = (files.export, "--trust", files.trust, "--effective-access", "legal", "--at")
    code, out, _ = run(capsys, *query, len(site.entries) - 1)
    assert code == 0 and "  labels: could not load clauses@1\n" in out
    until = add_seconds(exported.time, 3_600)
    said = f"from an exported folder, entry {exported.index}; no revocation reaches it"
    assert f"until {until} {said}\n" in out
    code, out, _ = run(capsys, *query, len(site.entries) - 1, "--json")
    (one,) = json.loads(out)["effective_access"]["exported"]
    assert (one["adapter"], one["index"], one["valid_until"]) == ("clauses@1", exported.index, until)
    for at in (exported.index - 1, until):
        code, out, _ = run(capsys, *query, at)
        assert code == 0 and "exported folder" not in out


@pytest.mark.thorough
def test_a_log_that_is_not_verified_answers_nothing(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, files.export, "--effective-access", "legal")
    assert code == 7 and "could load" not in out
    files.export.write_bytes(export_of(files.site, entries=files.site.entries[:-1]))
    code, out, _ = run(capsys, files.export, "--trust", files.trust, "--effective-access", "legal", "--json")
    assert code == 6 and "effective_access" not in json.loads(out)


def test_a_log_that_was_exchanged_after_it_was_verified_answers_nothing(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another log under the same keys, whole in itself."""
    other = files.site.fork()
    other.revoke("raul")
    verify = verifier.verify_export

    def exchanged(*given: Any, **named: Any) -> Report:
        report = verify(*given, **named)
        files.export.write_bytes(export_of(other))
        return report

    monkeypatch.setattr(verifier, "verify_export", exchanged)
    code, out, err = run(capsys, files.export, "--trust", files.trust, "--effective-access", "legal", "--at", 3)
    assert (code, out) == (6, "") and "which was verified, got sha256:" in err


def _without_values(line: str) -> str:
    """Digests and times differ from log to log."""
    return re.sub(r"sha256:[0-9a-f]+…?|[0-9-]{10}T[0-9:.]+Z", "VALUE", line)


def test_the_auditors_page_shows_what_the_program_prints(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "guides" / "auditors.md").read_text(encoding="utf-8")
    shown = ("verdict" + page.partition("```text\nverdict")[2].partition("```")[0]).splitlines()
    moment = len(files.site.entries) - 1
    _, out, _ = run(capsys, files.export, "--trust", files.trust, "--effective-access", "legal", "--at", moment)
    printed = [_without_values(line) for line in out.replace("otto", "lou").replace("raul", "rob").splitlines()]
    assert len(shown) > 5
    assert [line for line in shown if line != "…" and _without_values(line) not in printed] == []


def test_a_log_with_post_quantum_keys_is_verified_or_not_at_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ML-DSA the program names what it needs, and gives no verdict."""
    site, export, trust = LogBuilder(post_quantum=True), tmp_path / "ledger.tar", tmp_path / "trust.json"
    export.write_bytes(export_of(site))
    trust.write_bytes(encode_trust(site.trust))
    arguments = (export, "--trust", trust, "--without-cedar-policies")
    code, out, _ = run(capsys, *arguments)
    assert code == 0, out
    note, proof = parse_note(site.checkpoint()), tmp_path / "proof.json"
    for lines, ending in ((note.signatures, 0), (note.signatures[1:], 6)):
        checkpoint = encode_note(replace(note, signatures=lines))
        proof.write_bytes(encode_entry_proof(entry_proof_of(site, 0, checkpoint)))
        assert run(capsys, "--proof", proof, "--trust", trust)[0] == ending
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    ml_dsa._has_ml_dsa.cache_clear()
    try:
        for words in (arguments, ("--proof", proof, "--trust", trust)):
            proof.write_bytes(encode_entry_proof(entry_proof_of(site, 0, site.checkpoint())))
            code, out, err = run(capsys, *words)
            assert (code, out) == (7, "")
            assert "install cryptography 50 or later" in err
    finally:
        ml_dsa._has_ml_dsa.cache_clear()
