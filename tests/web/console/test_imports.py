"""A file of rows from a browser: sent under its own digest, bounded, checked before it is signed for."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.api.data import RowFindings, SplitRows
from appliance.domain.actions.proposals import parse_proposal
from appliance.domain.data.imports import ImportDataset, ImportValidationSet
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
    "dataset_kind": "classification",
    "format": "csv",
    "file": FILE,
    "columns": "text=text\nlabel=label",
    "labels": "fee\nlong term",
    "instruction": "",
    "owner": "the bank",
    "licence": "MIT",
    "classification": "internal",
}
FOUND = RowFindings(
    rows=2,
    train_rows=1,
    held_out_rows=1,
    labels={SECRET: SplitRows.model_validate({"train": 1, "held-out": 0})},
    label_count=0,
    similar_labels=(),
    duplicates=(),
    duplicate_count=0,
    overlaps={},
    max_tokens=None,
    mean_tokens=None,
    context_length=None,
    errors=(),
    error_count=0,
    notes=(),
)


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """Its checks end at once, and find FOUND; no import is carried out."""
    with console("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        made.site.enrol("vera", "validator")
        monkeypatch.setattr(made.context.checks, "put", lambda job: job())
        monkeypatch.setattr(made.context.datasets, "put", lambda job, owner: None)
        monkeypatch.setattr(checks, "_check", lambda *_: FOUND)
        yield made


def wrong(*errors: str) -> RowFindings:
    return FOUND.model_copy(update={"errors": errors, "error_count": len(errors)})


def base(desk: Console) -> str:
    return next(name for name, _ in desk.context.ledger.state.bases.items())


def put(browser: Browser, data: bytes, digest: str = "", **headers: str) -> httpx.Response:
    token = {"X-CSRF-Token": browser.csrf, **FROM_HERE} | headers
    return browser.http.put(f"/uploads/{digest or digest_bytes(data)}", content=data, headers=token)


def dataset(desk: Console, browser: Browser, **changes: str) -> httpx.Response:
    fields = {**TERMS, "dataset": "letters", "base": base(desk), "seed": "1", "held_out": "0.2", **changes}
    return browser.fill("import-dataset", fields)


def exam(desk: Console, browser: Browser, **changes: str) -> httpx.Response:
    fields = {**TERMS, "validation_set": "exam", "base": base(desk), "blind": "yes", **changes}
    return browser.fill("import-validation-set", fields)


def test_what_is_wrong_with_a_file_is_told_by_the_fields_of_the_form(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very messages of the command line, whose options a browser does not have."""
    told = []
    for header in (b"body,queue\n", b"message,kind\n", b"text\tlabel\n"):
        with pytest.raises(BadInput) as refused:
            list(read_records(header, "csv", "classification", {"text": "text", "label": "label"}, "the file"))
        told.append(str(refused.value))
    monkeypatch.setattr(checks, "_check", lambda *_: wrong(*told))
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    text = html.unescape(dataset(desk, browser).text)
    option = re.compile(r"(?<=[\s(])--[a-z]")  # random tokens have hyphens, too
    assert all(option.search(one) for one in told) and option.search(text) is None
    assert "write in the field Columns, one a line: text=body, label=queue" in text
    assert "choose in the field Format: tsv" in text


def again(browser: Browser, page: httpx.Response) -> httpx.Response:
    """Return the page to sign, to which the page of findings leads."""
    found = re.search(r'<a class="button" href="([^"]+)">Show what is signed', page.text)
    assert found is not None, page.text
    return browser.get(html.unescape(found[1]))


@pytest.mark.thorough
def test_a_dataset_is_sent_checked_and_signed_for(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("olga", new_passkey(**HERE))
    browser = desk.signed_in("olga")
    assert 'data-upload="file"' in browser.get("/sign/import-dataset").text
    assert put(browser, ROWS).json() == {"digest": FILE, "bytes": len(ROWS)}
    page = dataset(desk, browser)
    assert page.status_code == 200 and "has no held-out row" in page.text
    shown = again(browser, page)
    assert shown.status_code == 200, shown.text
    order = parse_proposal(hidden(shown, "file").encode())[0].order
    assert isinstance(order, ImportDataset)
    assert (order.file, order.columns, order.labels) == (FILE, {"text": "text", "label": "label"}, ("fee", "long term"))
    assert (order.held_out, order.seed, order.licence) == ("0.2", 1, "MIT")
    entry = entry_of(desk, signed(browser, shown, passkey))
    assert entry.type == "import.requested" and entry.actor == "olga"
    done = html.unescape(browser.get(f"/signed/{entry.index}").text)
    assert "The service now reads and checks the file." in done
    assert "in effect" not in done and "Nobody has to act" not in done
    paths = re.findall(r'<p class="actions">(.*?)</p>', done, re.S)[-1]
    assert [browser.get(path).status_code for path in re.findall(r'href="([^"]+)"', paths)] == [200] * 4


def test_a_held_out_file_takes_the_place_of_a_share(desk: Console) -> None:
    browser, other = desk.signed_in("olga"), b"text,label\nB,fee\n"
    put(browser, ROWS)
    put(browser, other)
    shown = again(browser, dataset(desk, browser, held_out_file=digest_bytes(other)))
    order = parse_proposal(hidden(shown, "file").encode())[0].order
    assert isinstance(order, ImportDataset) and order.held_out == digest_bytes(other)


def test_of_a_validation_set_all_rows_evaluate(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FOUND.model_copy(update={"rows": 7, "train_rows": 0, "held_out_rows": 7})
    monkeypatch.setattr(checks, "_check", lambda *_: found)
    browser = desk.signed_in("vera")
    put(browser, ROWS)
    page = exam(desk, browser).text
    assert "<dd>7</dd>" in page and "to train on" not in page


@pytest.mark.thorough
def test_of_a_blind_set_nothing_that_was_found_is_shown_but_numbers(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = desk.signed_in("vera")
    put(browser, ROWS)
    page = exam(desk, browser)
    assert page.status_code == 200 and SECRET not in page.text and "2, 1 to train on" in page.text
    order = parse_proposal(hidden(again(browser, page), "file").encode())[0].order
    assert isinstance(order, ImportValidationSet) and order.blind
    put(browser, ROWS)
    assert SECRET in exam(desk, browser, blind="").text
    monkeypatch.setattr(checks, "_check", lambda *_: wrong(SECRET))
    put(browser, ROWS)
    page = exam(desk, browser)
    assert SECRET not in page.text and "1 problem" in page.text and "Show what is signed" not in page.text

    def fail(*_: object) -> None:
        raise BadInput(SECRET)

    monkeypatch.setattr(checks, "_check", fail)
    put(browser, ROWS)
    page = exam(desk, browser)
    assert SECRET not in page.text and "cannot be read" in page.text


@pytest.mark.thorough
def test_what_was_not_checked_or_has_a_problem_is_not_prepared(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a draft checks the draft's own files, whatever check its address names."""
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    checked = html.unescape(re.findall(r'href="([^"]+check=[^"]+)"', dataset(desk, browser).text)[0])
    assert "You are about to sign" in browser.get(checked).text
    other = b"text,label\nB,fee\n"
    put(browser, other)
    monkeypatch.setattr(checks, "_check", lambda *_: wrong("row 2"))
    page = dataset(desk, browser, file=digest_bytes(other))
    assert "row 2" in page.text and "Show what is signed" not in page.text
    for key in (checked.partition("check=")[2], "check:olga:" + "0" * 32):
        assert "row 2" in browser.get(f"{page.url.path}?check={key}").text


@pytest.mark.thorough
def test_a_draft_is_kept_with_its_texts_for_who_filled_it_in(desk: Console) -> None:
    browser = put_rows(desk)
    page = dataset(desk, browser, instruction=SECRET, classification="odd: one")
    address = html.unescape(re.findall(r'href="(/sign/import-dataset/[^"]+change[^"]+)"', page.text)[0])
    form = html.unescape(browser.get(address).text)
    assert (
        'value="letters"' in form
        and 'value="odd: one" selected' in form
        and "text=text\nlabel=label</textarea>" in form
    )
    assert SECRET in form and f'name="file" value="{FILE}"' in form and "The file that was sent before is used" in form
    assert SECRET not in address and FILE not in address
    assert desk.signed_in("olga").get(address).status_code == 200, "another session of the same person"
    assert desk.signed_in("ines").get(address).status_code == 404
    assert desk.signed_in("vera").get(address).status_code == 404


def put_rows(desk: Console) -> Browser:
    browser = desk.signed_in("olga")
    put(browser, ROWS)
    return browser


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
    assert URL and json.loads(put(browser, b"x").text)["error"]["code"] == "rate-limited"


@pytest.mark.parametrize(
    "wrong_values", [{"file": "rows.csv"}, {"dataset_kind": "poem"}, {"format": "xlsx"}, {"held_out": "sha256:0"}]
)
def test_values_that_no_page_sends_are_named(desk: Console, wrong_values: dict[str, str]) -> None:
    browser = desk.signed_in("ines")
    put(browser, ROWS)
    page = dataset(desk, browser, **wrong_values)
    assert page.status_code == 400 and "of the appliance" not in page.text
    assert ("held_out_file" if "held_out" in wrong_values else next(iter(wrong_values))) in page.text
