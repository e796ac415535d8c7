"""The page that checks proofs, in real Chromium, opened from disk: it says what `appliance-verify` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.queries.proofs import (
    encode_entry_proof,
    parse_entry_proof,
    parse_record,
    verify_entry_proof,
    verify_record,
)
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.commitment import commit
from appliance.formats.log.log_policy import LogPolicy, parse_log_policy
from appliance.formats.log.trust import encode_trust, parse_trust
from appliance.formats.signatures.keys import generate_ed25519
from appliance.web.console.core.render import STATIC
from scripts.kit.log_builder import LogBuilder
from tests.kit.chromium import TIMEOUT_MS, browser
from tests.kit.entry_proofs import (
    COSIGNATURE,
    HOSTILE,
    TAMPERED,
    UNUSABLE,
    W1,
    W2,
    Witnessed,
    encoded,
    entry_proof_of,
    hostile,
)
from tests.kit.log_policies import quorum_policy
from tests.verifier.test_records import SALT, TEXT, record_of
from tests.web.console.test_browser import _axe

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]

WORDS: dict[type[ApplianceError], str] = {BadInput: "unverifiable", Tampered: "failed", Unavailable: "unverifiable"}
_IN_PAGE = """async ([proofs, trusted]) => {
  const trust = await parseTrust(trusted), found = [];
  for (const proof of proofs) {
    try {
      const file = parseObject(proof, "entry proofs documents disclosures");
      found.push(await check(trust, file, "", () => {}, () => {}));
    } catch (error) { found.push("no"); }
  }
  return found;
}"""


class Checker:
    """The page as it was saved, with nothing beside it."""

    def __init__(self, launched: Any, folder: Path) -> None:
        self.folder = folder
        saved = folder / "proof.html"
        shutil.copy(STATIC / "proof.html", saved)
        self.page = launched.new_context().new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("requestfinished", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(saved.as_uri())

    def check(self, proof: bytes, trust: bytes, text: str = "") -> tuple[str, str]:
        """Return the verdict's first word by its colour, and its sentence."""
        for name, data in (("proof", proof), ("trust", trust)):
            (self.folder / name).write_bytes(data)
            self.page.set_input_files(f"#{name}", str(self.folder / name))
        self.page.fill("#text", text)
        self.page.click("#check")
        verdict = self.page.locator("#verdict:not(:empty)")
        verdict.wait_for()
        return verdict.get_attribute("class"), verdict.text_content()

    @property
    def content(self) -> str:
        return str(self.page.locator("#content").text_content())

    @property
    def checks(self) -> str:
        return str(self.page.locator("#checks").text_content())


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checker]:
    with browser() as launched:
        yield Checker(launched, tmp_path_factory.mktemp("p"))


@pytest.fixture(scope="module")
def log() -> Witnessed:
    return Witnessed()


def policy_of(trust: bytes) -> tuple[LogPolicy, str | None]:
    if not trust.startswith(b"{"):
        return parse_log_policy(trust), None
    parsed = parse_trust(trust)
    return quorum_policy([parsed.log_key], [], 0), parsed.genesis


def word_of(act: Callable[[], object]) -> str:
    """Return the verdict of the program."""
    try:
        act()
    except ApplianceError as error:
        return WORDS[type(error)]
    return "verified"


def both(checker: Checker, proof: bytes, trust: bytes) -> str:
    """Return the verdict of the page, after a check that the program's is the same."""

    def program() -> None:
        verify_entry_proof(parse_entry_proof(proof), *policy_of(trust))

    word, said = checker.check(proof, trust)
    assert word == word_of(program), said
    return str(word)


def test_a_true_proof_is_verified_from_disk_and_says_what_it_proved(checker: Checker, log: Witnessed) -> None:
    assert checker.check(encoded(log.proof()), log.trust()) == ("verified", "verified")
    size = len(log.site.entries)
    assert f"of {size} entries" in checker.checks and "signed by bank.example/log+" in checker.checks
    assert '"type": "review.recorded"' in checker.content and '"decision": "approve"' in checker.content
    assert both(checker, encoded(log.proof()), log.policy(2)) == "verified"
    assert f"It was cosigned by {W1}, at 2026-02-02T02:40:00.000Z." in checker.checks
    assert _axe(checker.page) == [] and checker.errors == []
    assert all(url.startswith("file://") for url in checker.requests)


def test_every_entry_of_a_log_is_verified(checker: Checker, log: Witnessed) -> None:
    every = [encoded(log.proof(index)).decode() for index in range(len(log.site.entries))]
    assert checker.page.evaluate(_IN_PAGE, [every, log.trust().decode()]) == ["verified"] * len(every)


@pytest.mark.parametrize("case", [*TAMPERED, *COSIGNATURE])
def test_a_proof_that_was_changed_fails(checker: Checker, log: Witnessed, case: str) -> None:
    value = log.proof()
    (TAMPERED | COSIGNATURE)[case](value)
    assert both(checker, encoded(value), log.policy(1)) == "failed"
    assert checker.content == ""


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_is_no_proof_is_never_verified(checker: Checker, log: Witnessed, case: str) -> None:
    value = log.proof()
    UNUSABLE[case](value)
    assert checker.check(encoded(value), log.trust())[0] in ("failed", "unverifiable")


def test_bytes_that_are_no_json_are_unverifiable(checker: Checker, log: Witnessed) -> None:
    whole = encoded(log.proof())
    for data in (b'{"entry": "", ' + whole[1:], b"\xef\xbb\xbf" + whole, whole + b"\xff", b"[]", b"", b"\x00"):
        assert both(checker, data, log.trust()) == "unverifiable"


def test_a_wrong_trust_file_fails_and_one_that_is_none_is_unverifiable(checker: Checker, log: Witnessed) -> None:
    data, trust = encoded(log.proof()), log.trust()
    other = LogBuilder()
    assert both(checker, data, encode_trust(other.trust)) == "failed"
    mixed = json.loads(trust) | {"genesis": other.trust.genesis}
    assert both(checker, encoded(log.proof(0)), trust) == "verified"
    canonical = json.dumps(mixed, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    assert both(checker, encoded(log.proof(0)), canonical) == "failed"
    policy = log.policy(1)
    for bad in (
        trust[:-1],
        trust.replace(b'"version":1', b'"version":2'),
        trust.replace(b":", b": ", 1),
        trust.replace(b"+", b"+0", 1),
        policy.replace(b"quorum", b"group"),
        policy + b"quorum none\n",
        policy.replace(b"group witnesses 1", b"group witnesses 3"),
        policy.replace(b"group witnesses 1", b"group witnesses 01"),
        policy.replace(f" {W1} {W2}".encode(), f" {W1} {W1}".encode()),
        policy.replace(b"log ", b"lag "),
        policy.removesuffix(b"\n"),
        b"\n",
        b"",
    ):
        assert both(checker, data, bad) == "unverifiable", bad


def test_comments_spaces_and_groups_of_groups_are_read_as_the_program_reads_them(
    checker: Checker, log: Witnessed
) -> None:
    lines = log.policy(0).decode().splitlines()[:-1]
    groups = [f"group one any {W1}", f"\tgroup  both all one {W2} # no", "# said", "", "quorum both"]
    wrong = "\n".join([*lines, *groups]) + "\n"
    assert both(checker, encoded(log.proof()), wrong.encode()) == "unverifiable"
    assert both(checker, encoded(log.proof()), wrong.replace(" # no", "").encode()) == "verified"


def test_a_cosignature_of_an_unknown_witness_counts_for_nothing(checker: Checker, log: Witnessed) -> None:
    outsider = generate_ed25519()
    data = encoded(log.proof())
    assert both(checker, data, log.policy(1, **{W1: outsider})) == "unverifiable"
    assert "Too few witnesses" in checker.page.locator("#verdict").text_content()
    assert both(checker, data, log.policy(1, **{W1: outsider, W2: log.w2})) == "verified"
    assert f"Not checked, since your file does not name them: {W1}+" in checker.checks


def test_a_random_change_is_verified_by_neither_or_by_both(checker: Checker, log: Witnessed) -> None:
    data, trust = encoded(log.proof()), log.trust()
    changed = []
    for at in range(0, len(data), 31):
        copy = bytearray(data)
        copy[at] ^= 1 << at % 7
        if copy[at] < 128:
            changed.append(bytes(copy).decode())
    policy, genesis = policy_of(trust)
    ours = [
        word_of(lambda: verify_entry_proof(parse_entry_proof(text.encode()), policy, genesis))  # noqa: B023
        for text in changed
    ]
    theirs = checker.page.evaluate(_IN_PAGE, [changed, trust.decode()])
    assert [one == "verified" for one in ours] == [one == "verified" for one in theirs]
    assert ours.count("verified") < len(ours) / 4


def test_a_text_that_would_run_or_hide_is_shown_as_text(checker: Checker) -> None:
    site, index = hostile()
    data = encoded(entry_proof_of(site, index).model_dump(mode="json"))
    assert both(checker, data, encode_trust(site.trust)) == "verified"
    assert "<img src=x onerror=" in checker.content and HOSTILE not in checker.content
    assert "\\u{202e}degnahc" in checker.content and "\\u{2028}" in checker.content and "\\u{3164}" in checker.content
    assert checker.page.title() == "Check a proof" and checker.page.locator("img").count() == 0


def test_the_page_can_ask_no_server_and_runs_no_other_script(checker: Checker) -> None:
    refused = """(act) => new Promise((done) => {
      document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
      if (act === "fetch") fetch("http://localhost:9/").catch(() => {});
      if (act === "image") new Image().src = "http://localhost:9/x.png";
      if (act === "script") document.body.append(Object.assign(document.createElement("script"), { textContent: "1" }));
    })"""
    assert checker.page.evaluate(refused, "fetch") == "connect-src"
    assert checker.page.evaluate(refused, "image") == "img-src"
    assert checker.page.evaluate(refused, "script") == "script-src-elem"
    assert not any(url.startswith("http") for url in checker.requests)


def test_a_verdict_goes_when_another_file_is_chosen(checker: Checker, log: Witnessed) -> None:
    assert checker.check(encoded(log.proof()), log.trust())[0] == "verified"
    checker.page.set_input_files("#proof", str(checker.folder / "trust"))
    assert checker.page.locator("#verdict").text_content() == checker.content == ""


def test_a_check_that_ends_after_another_file_was_chosen_says_nothing(checker: Checker, log: Witnessed) -> None:
    assert checker.check(encoded(log.proof()), log.trust())[0] == "verified"
    said = checker.page.evaluate("""async () => {
      document.getElementById("check").click();
      document.dispatchEvent(new Event("input"));
      await new Promise((done) => setTimeout(done, 2000));
      return ["verdict", "checks", "content"].map((id) => document.getElementById(id).textContent);
    }""")
    assert said == ["", "", ""]


def test_a_text_beside_the_proof_of_an_entry_is_not_passed_over(checker: Checker, log: Witnessed) -> None:
    assert checker.check(encoded(log.proof()), log.trust(), "An answer that nobody gave")[0] == "unverifiable"


def test_a_file_of_many_megabytes_is_read(checker: Checker) -> None:
    site = LogBuilder.fork(Witnessed().site)
    site.add(site.answered(2, answer=commit(TEXT, SALT)))
    large = encoded(record_of(site) | {"text": "a" * 20_000_000})
    assert checker.check(large, encode_trust(site.trust))[1] == "failed: The record's text was not the answer."


def test_a_response_record_is_checked_as_the_program_checks_it(checker: Checker) -> None:
    site = LogBuilder.fork(Witnessed().site)
    site.add(site.answered(2, answer=commit(TEXT, SALT)))
    trust, record = encode_trust(site.trust), record_of(site)

    def both_of(value: dict[str, Any]) -> str:
        word, said = checker.check(encoded(value), trust)
        assert word == word_of(lambda: verify_record(parse_record(encoded(value)), policy_of(trust)[0])), said
        return str(word)

    assert both_of(record) == "verified"
    assert checker.check(encoded(record), trust) == ("verified", "verified, without its text")
    assert checker.check(encoded(record), trust, TEXT) == ("verified", "verified")
    assert "The text that you gave is the answer." in checker.checks
    assert checker.check(encoded(record), trust, TEXT + "!")[0] == "failed"
    assert both_of(record | {"text": TEXT}) == "verified"
    for change in (
        {"text": TEXT + "!"},
        {"proof": record["proof"].replace("index 3", "index 2")},
        {"entry": record["entry"].replace("stop", "length")},
        record_of(site, index=len(site.entries) - 2),
    ):
        assert both_of(record | change) == "failed"
    assert both_of(record | {"verdict": "verified"}) == "unverifiable"


def test_an_instruction_is_not_the_text_of_the_answer(checker: Checker) -> None:
    said = checker.page.evaluate("""async () => {
      const salt = btoa("s".repeat(32)), file = { answer_salt: salt, instruction_salt: salt }, words = [];
      const body = { answer: await commit("It is.", salt), instruction: await commit("Be brief.", salt) };
      for (const typed of ["Be brief.", "It is.", ""])
        words.push(await verifyTexts(file, { type: "request.finished", body }, typed, () => {}));
      return words;
    }""")
    assert said == ["verified, without its text", "verified", "verified, without its text"]


def test_a_signature_that_the_page_cannot_check_gives_no_verdict(checker: Checker) -> None:
    """Browsers have no ML-DSA. The page never shows "verified" under a trust file that requires it."""
    site = LogBuilder(post_quantum=True)
    proof, trust = encode_entry_proof(entry_proof_of(site, 0)), encode_trust(site.trust)
    word, said = checker.check(proof, trust)
    assert word == "unverifiable"
    assert "Check the signature by ML-DSA-65 with appliance-verify --proof." in said
    word, said = checker.check(proof, encode_trust(replace(site.trust, post_quantum_log_key=None)))
    assert word == "verified" and "Not checked, since your file does not name them" in checker.checks
