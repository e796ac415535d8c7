"""A file of rows from a browser: sent under its own digest, bounded, checked before it is signed for."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain.data.imports import ImportDataset, ImportValidationSet
from appliance.domain.rulebook.proposals import parse_proposal
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes
from appliance.ml.data.sources import read_records
from appliance.web.console.signing import imports
from appliance.workflows.data import checks
from scripts.kit.authenticator import new_passkey
from tests.kit.console import FROM_HERE, URL, Browser, Console, console
from tests.kit.founded import policy_set
from tests.web.console.test_signing import HERE, entry_of, hidden, signed

ROWS = b"text,label\nA word.,fee\nAnother.,term\n"
FILE = digest_bytes(ROWS)
SECRET = "The row that nobody may read"
TERMS = {
    "task": "classification",
    "format": "csv",
    "file": FILE,
    "columns": "text=text\nlabel=label",
    "labels": "fee\nlong term",
    "instruction": "",
    "owner": "the bank",
    "licence": "MIT",
    "classification": "internal",
}
FOUND: dict[str, Any] = {
    **dict.fromkeys(("rows", "train_rows", "held_out_rows", "label_count", "error_count", "duplicate_count"), 0),
    **{"rows": 2, "train_rows": 1, "held_out_rows": 1, "labels": {SECRET: {"train": 1, "held-out": 0}}},
    **{"similar_labels": [], "duplicates": [], "overlaps": {}, "errors": []},
    **dict.fromkeys(("max_tokens", "mean_tokens", "context_length")),
}


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """Its checks end at once, and find FOUND; no import is carried out."""
    with console("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        made.site.enroll("vera", "validator")
        monkeypatch.setattr(made.context.checks, "put", lambda job: job())
        monkeypatch.setattr(made.context.datasets, "put", lambda job: None)
        monkeypatch.setattr(checks, "_check", lambda *_: FOUND)
        yield made


def base(desk: Console) -> str:
    return next(name for name, _ in desk.context.ledger.state.bases.items())


def put(browser: Browser, data: bytes, digest: str = "", **headers: str) -> httpx.Response:
    token = {"X-CSRF-Token": browser.csrf, **FROM_HERE} | headers
    return browser.http.put(f"/uploads/{digest or digest_bytes(data)}", content=data, headers=token)


def dataset(desk: Console, browser: Browser, **changes: str) -> httpx.Response:
    fields = {**TERMS, "dataset": "letters", "base": base(desk), "seed": "1", "held_out": "0.2", **changes}
    return browser.post("/sign/import-dataset", {"csrf": browser.csrf, **fields})


def exam(desk: Console, browser: Browser, **changes: str) -> httpx.Response:
    fields = {**TERMS, "validation_set": "exam", "base": base(desk), "blind": "yes", **changes}
    return browser.post("/sign/import-validation-set", {"csrf": browser.csrf, **fields})


def test_what_is_wrong_with_a_file_is_told_by_the_fields_of_the_form(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very messages of the command line, whose options a browser does not have."""
    told = []
    for header in (b"body,queue\n", b"message,kind\n", b"text\tlabel\n"):
        with pytest.raises(BadInput) as refused:
            list(read_records(header, "csv", "classification", {"text": "text", "label": "label"}, "the file"))
        told.append(str(refused.value))
    monkeypatch.setattr(checks, "_check", lambda *_: {**FOUND, "errors": told, "error_count": len(told)})
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    text = html.unescape(dataset(desk, browser).text)
    assert all("--" in one for one in told) and "--" not in text.replace("<!--", "")
    assert "write in the field Columns, one a line: text=body, label=queue" in text
    assert "choose in the field Format: tsv" in text


def again(browser: Browser, verb: str, page: httpx.Response) -> httpx.Response:
    """The form that the page of findings holds, sent."""
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text)
    fields = {name: html.unescape(value) for name, value in found}
    return browser.post(f"/sign/{verb}", fields)


def test_a_dataset_is_sent_checked_and_signed_for(desk: Console) -> None:
    passkey = desk.site.enroll_passkey("olga", new_passkey(**HERE))
    browser = desk.signed_in("olga")
    assert 'data-upload="file"' in browser.get("/sign/import-dataset").text
    assert put(browser, ROWS).json() == {"digest": FILE, "bytes": len(ROWS)}
    page = dataset(desk, browser)
    assert page.status_code == 200 and "has no held-out row" in page.text
    shown = again(browser, "import-dataset", page)
    assert shown.status_code == 200, shown.text
    order = parse_proposal(hidden(shown, "file").encode())[0].order
    assert isinstance(order, ImportDataset)
    assert (order.file, order.columns, order.labels) == (FILE, {"text": "text", "label": "label"}, ("fee", "long term"))
    assert (order.held_out, order.seed, order.licence) == ("0.2", 1, "MIT")
    entry = entry_of(desk, signed(browser, shown, passkey))
    assert entry.type == "import.requested" and entry.actor == "olga"


def test_a_held_out_file_takes_the_place_of_a_share(desk: Console) -> None:
    browser, other = desk.signed_in("olga"), b"text,label\nB,fee\n"
    put(browser, ROWS)
    put(browser, other)
    shown = again(browser, "import-dataset", dataset(desk, browser, held_out_file=digest_bytes(other)))
    order = parse_proposal(hidden(shown, "file").encode())[0].order
    assert isinstance(order, ImportDataset) and order.held_out == digest_bytes(other)


def test_of_a_blind_set_nothing_that_was_found_is_shown_but_numbers(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = desk.signed_in("vera")
    put(browser, ROWS)
    page = exam(desk, browser)
    assert page.status_code == 200 and SECRET not in page.text and "2, 1 to train on" in page.text
    order = parse_proposal(hidden(again(browser, "import-validation-set", page), "file").encode())[0].order
    assert isinstance(order, ImportValidationSet) and order.blind
    put(browser, ROWS)
    assert SECRET in exam(desk, browser, blind="").text
    monkeypatch.setattr(checks, "_check", lambda *_: {**FOUND, "errors": [SECRET], "error_count": 1})
    put(browser, ROWS)
    page = exam(desk, browser)
    assert SECRET not in page.text and "1 problem" in page.text and "Show what is signed" not in page.text

    def fail(*_: object) -> None:
        raise BadInput(SECRET)

    monkeypatch.setattr(checks, "_check", fail)
    put(browser, ROWS)
    page = exam(desk, browser)
    assert SECRET not in page.text and "cannot be read" in page.text


def test_what_was_not_checked_or_has_a_problem_is_not_prepared(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    key = hidden(dataset(desk, browser), "check")
    other = b"text,label\nB,fee\n"
    put(browser, other)
    assert dataset(desk, browser, check=key, file=digest_bytes(other)).status_code == 403
    assert dataset(desk, browser, check="check:olga:" + "0" * 32).status_code in (403, 404)
    assert dataset(desk, desk.signed_in("ines"), check=key).status_code in (403, 404)
    monkeypatch.setattr(checks, "_check", lambda *_: {**FOUND, "errors": ["row 2"], "error_count": 1})
    put(browser, ROWS)
    page = dataset(desk, browser)
    assert "row 2" in page.text and 'name="check"' not in page.text


def test_the_form_is_offered_again_with_its_short_fields_and_no_text(desk: Console) -> None:
    page = dataset(desk, put_rows(desk), instruction=SECRET, classification="odd: one")
    address = html.unescape(re.findall(r'href="(/sign/import-dataset\?[^"]+)"', page.text)[0])
    form = desk.signed_in("olga").get(address).text
    assert 'value="letters"' in form and 'value="odd: one"' in form and "text=text\nlabel=label</textarea>" in form
    assert "the+bank" not in address and "row" not in address and FILE not in address
    assert '<option value="confidential">' in form and "NAME@VERSION" not in form


def put_rows(desk: Console) -> Browser:
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    return browser


def test_a_check_is_shown_to_who_asked_for_it(desk: Console) -> None:
    browser, other = desk.signed_in("olga"), desk.signed_in("vera")
    put(browser, ROWS)
    key = hidden(dataset(desk, browser), "check")
    assert browser.get(f"/checks/{key}").status_code == 200
    assert other.get(f"/checks/{key}").status_code == 404


def test_an_upload_comes_from_a_page_of_this_session_by_who_may_import(desk: Console) -> None:
    browser = desk.signed_in("olga")
    refused = [
        put(browser, ROWS, **{"X-CSRF-Token": desk.signed_in("vera").csrf}),
        put(browser, ROWS, **{"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9000"}),
        put(desk.signed_in("rita"), ROWS),
        desk.browser().http.put(f"/uploads/{FILE}", content=ROWS, headers=FROM_HERE),
    ]
    assert [answer.status_code for answer in refused] == [403, 403, 403, 401]
    assert all("error" in answer.json() for answer in refused)
    assert desk.context.artifacts.uploads() == {}


def test_an_upload_is_bounded_and_is_what_its_digest_says(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = desk.signed_in("olga")
    assert put(browser, ROWS, digest_bytes(b"other")).status_code == 400
    assert put(browser, ROWS, "sha256:x").status_code == 400
    monkeypatch.setattr(imports, "MOST_BYTES", 10)
    assert put(browser, ROWS).status_code == 413
    assert desk.context.artifacts.uploads() == {}
    monkeypatch.setattr(desk.app._uploads, "_most_of_one", 0)  # type: ignore[attr-defined]
    assert put(browser, b"x").status_code == 429
    assert URL and json.loads(put(browser, b"x").text)["error"]["code"] == "too-many"
