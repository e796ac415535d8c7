"""The proof of an entry as the console hands it out, and the page that checks it: short, closed, and published."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.queries.proofs import EntryProof, parse_entry_proof, verify_entry_proof
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from appliance.web.console.auditors.entry import PROOF_PAGE, PROOF_PAGE_DIGEST
from tests.kit.console import Browser, Console, console
from tests.kit.founded import policy_set
from tests.kit.log_policies import quorum_policy

ROOT = Path(__file__).resolve().parents[3]
MOST_LINES = 216
ERASABLE = "Name the clause."
W1, W2 = "witness.example/w1", "witness.example/w2"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("serving", tmp_path_factory.mktemp("c") / "h") as made:
        yield made


@pytest.mark.thorough
def test_a_proof_of_every_entry_is_handed_out_and_is_verified(desk: Console) -> None:
    browser, policy = desk.signed_in("audrey"), quorum_policy([desk.site.trust.log_key], [], 0)
    size = desk.context.ledger.state.size
    for index in range(size):
        answer = browser.get(f"/log/{index}/proof")
        assert answer.headers["content-disposition"] == f'attachment; filename="entry-{index}-proof.json"'
        found = verify_entry_proof(parse_entry_proof(answer.content), policy, desk.site.trust.genesis)
        assert found.entry.index == index and found.documents == desk.context.ledger.documents_of(index)
    assert browser.get(f"/log/{size + 9}/proof").status_code == 404


def test_it_has_the_last_checkpoint_that_each_witness_cosigned_and_that_has_the_entry(tmp_path: Path) -> None:
    witnesses = {W1: generate_ed25519(), W2: generate_ed25519()}
    vkeys = tuple(witness_vkey_of(name, key) for name, key in witnesses.items())
    with console("staffed", tmp_path / "h") as desk:
        desk.site.adopt(policy_set(witnesses=vkeys, witness_quorum=2))
        for name, key in witnesses.items():
            body, documents = desk.site.cosigned(key, name)
            desk.site.add(body, documents=documents)
        size = desk.context.ledger.state.size
        browser, policy = desk.signed_in("audrey"), quorum_policy([desk.site.trust.log_key], vkeys, 2)

        def read(index: int) -> bytes:
            return browser.get(f"/log/{index}/proof").content

        found = verify_entry_proof(parse_entry_proof(read(3)), policy)
        assert found.sizes[1:] == (size - 2, size - 1) and set(found.times_s) == {W1, W2}
        # The first witness saw the log before this entry was in it.
        assert len(parse_entry_proof(read(size - 2)).proofs) == 2
        assert len(parse_entry_proof(read(size - 1)).proofs) == 1


def test_units_save_the_page_and_no_proof_and_nobody_without_a_session_either(desk: Console) -> None:
    unit, outsider = desk.signed_in("legal"), desk.browser()
    assert unit.get("/log/5/proof").status_code == 403
    answer = unit.get("/proof.html")
    assert (answer.status_code, answer.content) == (200, PROOF_PAGE)
    assert answer.headers["content-disposition"] == 'attachment; filename="proof.html"'
    for path in ("/log/5/proof", "/proof.html"):
        assert outsider.get(path).status_code == 401


@pytest.mark.thorough
def test_a_proof_shows_no_text_that_was_erased(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        site, browser = desk.site, desk.signed_in("audrey")
        texts = [[one["text"] for one in _proof(browser, index).disclosures] for index in range(site.state.size)]
        index = next(index for index, found in enumerate(texts) if ERASABLE in found)
        commitment = next(one["commitment"] for one in _proof(browser, index).disclosures if one["text"] == ERASABLE)
        site.erase(commitment)
        left = _proof(browser, index)
        assert [one["text"] for one in left.disclosures] == [text for text in texts[index] if text != ERASABLE]
        verify_entry_proof(left, quorum_policy([site.trust.log_key], [], 0))


def _proof(browser: Browser, index: int) -> EntryProof:
    return parse_entry_proof(browser.get(f"/log/{index}/proof").content)


def test_the_page_s_digest_is_published_in_the_documentation_and_on_an_entry_s_page(desk: Console) -> None:
    """Whoever changes the page writes the new digest into both pages."""
    for page in ("docs/guides/auditors.md", "SECURITY.md"):
        assert PROOF_PAGE_DIGEST.removeprefix("sha256:") in (ROOT / page).read_text(encoding="utf-8"), page
    assert PROOF_PAGE_DIGEST in desk.signed_in("audrey").get("/log/5").text


def test_the_page_is_short_and_runs_nothing_but_the_script_that_its_own_policy_names() -> None:
    text = PROOF_PAGE.decode()
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES and max(map(len, lines[5:])) <= 120
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = {part.split()[0]: part.split()[1:] for part in policy[1].split(";")}
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == ["'none'"]
    assert set(allowed) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}
    for name in ("script", "style"):
        (inner,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert allowed[f"{name}-src"] == [f"'sha256-{digest}'"], f"write 'sha256-{digest}' into the page's {name}-src"
    assert text.isascii()


def test_the_page_asks_for_nothing_and_writes_no_markup() -> None:
    text = PROOF_PAGE.decode()
    for word in (
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "import(",
        "innerHTML",
        "eval(",
        "Function(",
        "src=",
        "href=",
    ):
        assert word not in text
