"""The journeys in real Chromium, from rows to an answer: operator, two reviewers, release owner, unit, auditor and two
administrators sign with passkeys, over a service with real workers; the log is then verified offline, assertions
included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.names import encode_value
from appliance.domain.governance.passkeys import PASSKEY_FIELDS, EnrolPasskey
from appliance.domain.governance.policies import AdoptPolicy, assemble_policy
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from scripts.kit.appliance import QUICK, ROOT, Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.postgres import APPLICATION, Server, postgres
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.kit.chromium import Tab, browser, open_tab

__all__ = ["postgres"]

pytestmark = [pytest.mark.outside, pytest.mark.timeout(900)]

FORBID = """
@id("no-night-work")
forbid (principal, action == Action::"train", resource) when { principal.name == "olga" };
"""


@pytest.fixture
def launched() -> Iterator[Any]:
    with browser() as made:
        yield made


class Desk:
    """The people of a site, each in a browser of their own with an authenticator of their own."""

    def __init__(self, site: Appliance, launched: Any, url: str) -> None:
        self.site, self._launched, self.url = site, launched, url
        self.tabs: dict[str, Tab] = {}

    def come(self, name: str) -> Tab:
        tab = self.tabs[name] = open_tab(self._launched, self.url)
        tab.page.goto(self.site.ask("POST", "/v1/console/links", name)["url"])
        del self.site.sessions[name]  # it is the browser's now
        tab.page.get_by_role("button", name="Sign in").click()
        tab.page.wait_for_url("**/home")
        return tab

    def make_passkey(self, name: str) -> bytes:
        """Its proof, as the person saves it."""
        tab = self.come(name)
        tab.authenticator()
        tab.page.goto("/passkeys/new")
        tab.page.get_by_label("Name").fill("blue")
        tab.page.get_by_role("button", name="Make the passkey").click()
        tab.page.get_by_text("step 2 of 2").wait_for()
        with tab.page.expect_download() as downloading:
            tab.page.get_by_role("button", name="Prove it and save the file").click()
        return Path(downloading.value.path()).read_bytes().removesuffix(b"\n")

    def sign(self, name: str, action: str, fields: dict[str, str], given: str = "", then: str = "") -> str:
        """Fill in the form, read what is shown, and sign. Return the order's digest.

        `then` is a text that the page before the signature has.
        """
        page = self.tabs[name].page
        page.goto(f"/sign/{action}{given}")
        for member, text in fields.items():
            self._fill(page, member, text)
        page.locator("form.order button[type=submit]").click()
        return self._confirm(page, then)

    def _confirm(self, page: Any, then: str) -> str:
        page.locator("[data-identity]", has_text="sha256:").wait_for(state="attached")
        page.eval_on_selector_all("main details", "all => all.forEach(part => { part.open = true; })")
        assert then in page.locator("main").inner_text()
        identity = str(page.locator("[data-identity]").text_content())
        page.get_by_role("button", name="Sign with a passkey").click()
        page.wait_for_url(re.compile(r"/(signed|previews)/"))
        return identity

    def import_rows(self, name: str, file: Path, fields: dict[str, str]) -> str:
        """Import rows: the browser hashes the file, the service's worker checks it, and the person signs."""
        page = self.tabs[name].page
        page.goto("/sign/import-dataset")
        page.locator("input[data-upload=file]").set_input_files(file)
        for member, text in fields.items():
            self._fill(page, member, text)
        page.get_by_role("button", name="Send and check").click()
        page.get_by_role("link", name="Show what is signed").click()
        return self._confirm(page, f"{file.name}, {file.stat().st_size} bytes")

    @staticmethod
    def _fill(page: Any, member: str, text: str) -> None:
        page.eval_on_selector_all("form.order details", "all => all.forEach(part => { part.open = true; })")
        found = page.locator(f'form.order [name="{member}"]')
        if found.evaluate("node => node.tagName") == "SELECT":
            found.select_option(text)
        else:
            found.fill(text)


def test_the_six_journeys_in_a_browser(launched: Any, tmp_path: Path, postgres: Server) -> None:
    postgres.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{postgres.passwords[APPLICATION]}'")
    database, port = postgres.create_database(), free_port()
    site = found_site(
        tmp_path / "h",
        free_port(),
        APPLIANCE_CONSOLE=f"127.0.0.1:{port}",
        APPLIANCE_DATABASE_URL=postgres.url(database, APPLICATION),
        APPLIANCE_MIGRATION_URL=postgres.url(database),
    )
    try:
        adopt(site)
        assert site.import_base(build_base(tmp_path / "base"))["status"] == "finished"
        desk = Desk(site, launched, f"http://localhost:{port}")
        administrators(desk)
        operator(desk, write_csv(tmp_path / "rows.csv", clauses()))
        reviewers(desk)
        owner_and_unit(desk)
        policy(desk)
        auditor(desk, tmp_path)
        for name, tab in desk.tabs.items():
            # A page that was refused is an error of the browser's console.
            assert [error for error in tab.errors if "status of 40" not in error] == [], name
            assert tab.hosts == {desk.url.removeprefix("http://")}
    finally:
        if site.service is not None:
            site.stop()


def adopt(site: Appliance) -> None:
    """Sign by key files, since there are no passkeys at localhost yet."""
    folder = ROOT / "policies" / "default"
    found = assemble_policy("default", {path.name: path.read_bytes() for path in folder.iterdir()})
    parameters = found.parameters.model_copy(update={"passkeys_on_localhost": True})
    document = encode_value(found.model_copy(update={"parameters": parameters}))
    order = AdoptPolicy(policy=digest_bytes(document), **site.terms("anna"))
    site.countersign(str(site.order(order, policy=document)["order"]))


def administrators(desk: Desk) -> None:
    """Enrol the first two passkeys by key files, and all others by these two in the browser."""
    for name in ("anna", "ben"):
        proof = desk.make_passkey(name)
        envelope = parse_envelope(proof)
        said = parse_credential(PasskeyPossession, envelope.payload)
        values = {member: getattr(said, member) for member in ("key", "keyid", *PASSKEY_FIELDS)}
        terms = desk.site.terms("anna")
        order = EnrolPasskey(principal=name, possession=envelope.pae_digest, **values, **terms)
        desk.site.countersign(str(desk.site.order(order, possession=proof)["order"]))
    for name in ("olga", "rita", "rob", "lou"):
        proof = desk.make_passkey(name).decode()
        order_digest = desk.sign("anna", "enrol-passkey", {"possession": proof})
        page = desk.tabs["ben"].page
        page.goto("/orders")
        page.get_by_role("link", name="Countersign").click()
        page.get_by_role("button", name="Show what is signed").click()
        page.locator("[data-countersigned] dd", has_text="blue").wait_for()
        desk._confirm(page, order_digest)
    desk.come("legal")
    desk.come("axel")


def operator(desk: Desk, rows: Path) -> None:
    terms = {
        "dataset": "clauses",
        "dataset_kind": "classification",
        "format": "csv",
        "base": "tiny",
        "held_out": "0.25",
    }
    said = {"owner": "Legal", "licence": "CC0-1.0", "classification": "internal"}
    order = desk.import_rows("olga", rows, terms | said)
    assert desk.site.wait_import(order)["status"] == "finished"
    recipe = {"name": "clauses", "base": "tiny", "dataset": "clauses@1", **QUICK}
    desk.sign("olga", "train", {f"recipe.{key}": str(value) for key, value in recipe.items()}, then="(auto)")
    assert desk.site.wait_run("r-000001")["ended"]
    page = desk.tabs["olga"].page
    page.goto("/runs/r-000001")
    assert "clauses@1" in page.locator("main").inner_text()


def reviewers(desk: Desk) -> None:
    for name, field in (("rita", "privacy"), ("rob", "model-risk")):
        page = desk.tabs[name].page
        for part in ("changes", "quality", "findings"):
            page.goto("/adapters/clauses@1")
            page.get_by_role("link", name=part.capitalize(), exact=True).click()
            page.wait_for_url(f"**tab={part}")
        said = {"decision": "approve", "meaning": "I read it.", "valid_until": "5d"}
        given = f"?given=adapter:clauses@1&given=unit:legal&given=review_function:{field}"
        desk.sign(name, "review", said, given, then="part = quality")


def owner_and_unit(desk: Desk) -> None:
    page = desk.tabs["lou"].page
    page.goto("/candidates")
    assert "clauses@1" in page.locator("main").inner_text()
    desk.sign("lou", "activate", {"served_model": "labels"}, "?given=adapter:clauses@1&given=unit:legal")
    page = desk.tabs["legal"].page
    page.goto("/releases/legal/labels")
    assert "clauses@1" in page.locator("main").inner_text()
    page.goto("/ask?served_model=labels")
    page.get_by_label("your text").fill(clauses()[0][0])
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("heading", name="Answer").wait_for()


def policy(desk: Desk) -> None:
    """Another set is compared, tried, ordered and countersigned; then an administrator ends a session."""
    page = desk.tabs["anna"].page
    page.goto("/sign/adopt-policy")
    cedar = page.locator('[name="policy.cedar"]').input_value()
    refused = "Cedar policy no-night-work forbids olga the action train"
    desk.sign("anna", "adopt-policy", {"policy.cedar": cedar + FORBID}, then=refused)
    page = desk.tabs["ben"].page
    page.goto("/orders")
    page.get_by_role("link", name="Countersign").click()
    page.get_by_role("button", name="Show what is signed").click()
    desk._confirm(page, refused)
    page = desk.tabs["anna"].page
    page.goto("/sessions")
    with page.expect_response(lambda answer: answer.request.method == "POST"):
        page.get_by_role("button", name="End the session of lou").first.click()
    page.wait_for_url("**/sessions")
    answer = desk.tabs["lou"].page.goto("/home")
    assert answer is not None and answer.status == 401


def auditor(desk: Desk, place: Path) -> None:
    """Find what happened, and verify the whole log with only the trust file."""
    page = desk.tabs["axel"].page
    page.goto("/log?type=review.recorded")
    assert page.locator("#found tbody tr").count() == 2
    page.goto("/log?type=session.closed")
    page.locator("#found tbody tr td", has_text="anna").first.wait_for()
    export = page.context.request.get(f"{desk.url}/exports/ledger.tar").body()
    assert count_assertions(desk.site) >= 14
    (place / "ledger.tar").write_bytes(export)
    (place / "trust.json").write_bytes(desk.site.settings.trust.read_bytes())
    command = [sys.executable, "-m", "appliance.verifier", "ledger.tar", "--trust", "trust.json"]
    apart = {**os.environ, "APPLIANCE_HOME": str(place / "nowhere"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=apart, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


def count_assertions(site: Appliance) -> int:
    """How many orders of the log a passkey signed."""
    digests = [entry["documents"]["order"] for entry in site.entries() if "order" in entry["documents"]]
    orders = [parse_envelope(site.get(f"/v1/documents/{digest}", "axel")) for digest in digests]
    return sum(order.signature.sig.startswith(b"{") for order in orders)
