"""Sample views and trials in the console: the answers go once to the person who signed, and the log says no more."""

from __future__ import annotations

import html
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.domain.core.records.runs import Adapter
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.formats.core.commitment import commit
from appliance.formats.core.fields import parse_base64
from appliance.web.console.reviewers import preview as pages
from appliance.workflows.core.prompts import ANSWERS_KEPT_S, HeldAnswers
from appliance.workflows.serving import previews
from scripts.kit.authenticator import Authenticator, new_passkey
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for
from tests.domain.audit.test_verify import verify
from tests.kit.console import FROM_HERE, Browser, Console, console, listening
from tests.kit.founded import policy_set
from tests.web.console.test_signing import HERE, shown, signed

PROMPT = "May the tenant of Zyxwolf sublet, they ask?"
SAMPLES = {"adapter": "clauses@1", "count": "3"}


def answered(
    context: Any, preview: Any, adapter: Adapter, released: Adapter | None, questions: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Answer as a worker does, without one."""
    models = ["adapter", *(["base"] if preview.kind == "samples" else [])]

    def answer(model: str, number: int) -> dict[str, Any]:
        told = {"model": model, "code": None, "text": f"answer {number}", "probability": None}
        return {**told, "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 1}

    return [[answer(model, number) for model in models] for number in range(len(questions))]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    with console("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        monkeypatch.setattr(previews, "_ask", answered)
        monkeypatch.setattr(made.context.previews, "put", lambda job: job())
        yield made


def ordered(desk: Console, action: str, fields: dict[str, str]) -> tuple[Browser, str]:
    """Sign the order as rita. Return her browser and the page that waits for the answers."""
    passkey: Authenticator = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = signed(browser, shown(browser, action, fields), passkey)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/previews/sha256:"), answer.text
    return browser, answer.headers["location"]


def ends(desk: Console, kind: str = "samples.shown") -> list[dict[str, Any]]:
    return [entry for entry in map(json.loads, desk.site.entries) if entry["type"] == kind]


@pytest.mark.thorough
def test_rows_are_shown_once_to_who_signed_and_recorded_when_they_were_sent(desk: Console) -> None:
    browser, path = ordered(desk, "view-samples", SAMPLES)
    assert "The answers are ready" in browser.get(path).text
    assert f'href="{path}"' in browser.get("/home").text
    assert browser.http.head(path).status_code == 200
    for name in ("raul", "olga", "audrey"):
        other = desk.signed_in(name)
        assert (other.get(path).status_code, other.post(path, {"csrf": other.csrf}).status_code) == (404, 404)
    assert browser.post(path, {"csrf": "wrong"}).status_code == 403
    assert browser.post(path, {"csrf": browser.csrf}, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert ends(desk) == [], "none of these had a row"
    page = html.unescape(browser.post(path, {"csrf": browser.csrf}).text)
    assert re.findall(r"Row (\d) of 3", page) == ["1", "2", "3"] and page.count("held out") == 3
    (entry,) = ends(desk)
    assert (entry["outcome"], entry["body"]["rows"], entry["body"]["by"]) == ("success", 3, "rita")
    assert browser.get(path).status_code == 404
    again = browser.post(path, {"csrf": browser.csrf})
    assert (again.status_code, "held out" in again.text) == (404, False)
    assert len(ends(desk)) == 1 and verify(desk.site).findings == ()


def test_answers_that_nobody_fetches_end_as_not_fetched(desk: Console) -> None:
    clock = Clock()
    desk.context.answers = HeldAnswers(clock)
    browser, path = ordered(desk, "view-samples", SAMPLES)
    clock.now = ANSWERS_KEPT_S - 1
    previews.close_unfetched(desk.context)
    assert ends(desk) == []
    clock.now = ANSWERS_KEPT_S
    previews.close_unfetched(desk.context)
    (entry,) = ends(desk)
    assert (entry["outcome"], entry["body"]["code"], entry["body"]["rows"]) == ("failure", "not-fetched", 0)
    assert browser.post(path, {"csrf": browser.csrf}).status_code == 404
    assert "within 10 minutes" in browser.get(path).text
    assert desk.context.ledger.state.previews.get(path.removeprefix("/previews/")) is None, "another can be ordered"


def test_an_adapter_that_was_revoked_meanwhile_is_not_shown(desk: Console) -> None:
    browser, path = ordered(desk, "view-samples", SAMPLES)
    site = desk.site
    order = site.order(RevokeAdapter, "rita", **site.on_adapter(1), reason=site.text("It answers names."))
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    answer = browser.post(path, {"csrf": browser.csrf})
    assert (answer.status_code, "held out" in answer.text) == (403, False)
    (entry,) = ends(desk)
    assert (entry["outcome"], entry["body"]["code"]) == ("failure", "denied")


def test_a_revocation_while_the_rows_are_sent_leaves_no_success(desk: Console) -> None:
    _, path = ordered(desk, "view-samples", SAMPLES)
    _, record = previews.deliver_answers(desk.context, "rita", path.removeprefix("/previews/"), lambda answers: answers)
    site = desk.site
    order = site.order(RevokeAdapter, "rita", **site.on_adapter(1), reason=site.text("It answers names."))
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    record(True)
    (entry,) = ends(desk)
    assert (entry["outcome"], entry["body"]["code"]) == ("interrupted", "not-delivered")


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 4_000_000])
def test_a_connection_that_ends_before_the_rows_arrived_is_recorded_as_interrupted(
    home: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The client of a real socket leaves before the answer, or while an answer larger than every buffer is sent."""
    port, asked, left = free_port(), threading.Event(), threading.Event()

    def wait_and_hand_over(*given: Any) -> Any:
        asked.set()
        assert left.wait(60)
        return previews.deliver_answers(*given)

    with console("sealed", home, f"http://localhost:{port}") as desk, listening(desk, port):
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        monkeypatch.setattr(previews, "_ask", answered)
        monkeypatch.setattr(desk.context.previews, "put", lambda job: job())
        monkeypatch.setattr(pages, "deliver_answers", wait_and_hand_over)
        path, cookie, csrf = ordered_at(desk, port)
        found = desk.context.answers.find(path.removeprefix("/previews/"))
        assert found is not None
        found.result["rows"][0]["text"] = "x" * size
        body = urlencode({"csrf": csrf})
        head = {"Host": f"localhost:{port}", "Cookie": cookie, "Content-Length": str(len(body)), **FROM_HERE}
        head["Content-Type"] = "application/x-www-form-urlencoded"
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n{body}".encode())
            # A connection that ends before the form is read has asked for nothing: its answers go on waiting.
            assert asked.wait(60)
            if size > 1:
                left.set()
                client.recv(1_000)
        left.set()
        (entry,) = wait_for(lambda: ends(desk), "the preview's end")
        assert (entry["outcome"], entry["body"]["code"], entry["body"]["rows"]) == ("interrupted", "not-delivered", 0)


def ordered_at(desk: Console, port: int) -> tuple[str, str, str]:
    """Sign the order in this process. Return its page, and what another client needs to fetch the answers."""
    passkey = desk.site.enrol_passkey("rita", new_passkey(rp_id="localhost", origin=desk.url))
    browser = desk.signed_in("rita")
    answer = signed(browser, shown(browser, "view-samples", SAMPLES), passkey)
    cookie = "; ".join(f"{one.name}={one.value}" for one in browser.http.cookies.jar)
    return answer.headers["location"], cookie, browser.csrf


@pytest.mark.thorough
def test_a_prompt_of_words_is_answered_and_no_text_is_kept(desk: Console) -> None:
    fields = {"adapter": "clauses@1", "prompts.1": PROMPT, "prompts.2": "Two\r\nlines.", "max_tokens": "8"}
    browser, path = ordered(desk, "try-adapter", fields)
    page = browser.post(path, {"csrf": browser.csrf}).text
    assert PROMPT in page and "Two\nlines." in page and "answer 0" in page and "answer 1" in page
    (entry,) = ends(desk, "try.finished")
    assert entry["outcome"] == "success" and len(entry["body"]["answers"]) == 2
    saved = re.search(r'href="data:application/json;charset=utf-8;base64,([^"]+)"', page)
    assert saved is not None
    kept = json.loads(parse_base64(saved[1], "file"))
    for one, bound in zip(kept["answers"], entry["body"]["answers"], strict=True):
        assert bound["answer"] == commit(one["text"], parse_base64(one["salt"], "salt"))
    (order,) = [one for one in map(json.loads, desk.site.entries) if one["type"] == "try.requested"]
    payload = desk.site.ledger.documents_of(order["index"])["order"]
    first = kept["answers"][0]
    assert commit(first["prompt"], bytes.fromhex(first["prompt_salt"])).encode() in parse_base64(
        json.loads(payload)["payload"], "payload"
    )
    log = b"".join(desk.site.entries) + b"".join(desk.site.documents.values())
    assert b"Zyxwolf" not in log and all("Zyxwolf" not in one.text for one in desk.site.disclosures)
    assert verify(desk.site).findings == ()


def test_the_form_of_a_trial_asks_for_texts_and_begins_as_the_command_line(desk: Console) -> None:
    fields = {one["name"]: one for one in desk.signed_in("rita").get("/sign/try-adapter.json").json()["fields"]}
    prompts = [name for name in fields if name.startswith("prompts.")]
    assert len(prompts) == 8 and [fields[name]["optional"] for name in prompts] == [False] + [True] * 7
    assert (fields["max_tokens"]["value"], fields["adds_instruction"]["value"]) == ("256", "yes")


def test_a_trial_that_failed_says_why_and_shows_nothing(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise previews.Unavailable("memory: expected enough, got too little", code="out-of-memory")

    monkeypatch.setattr(previews, "_ask", fail)
    browser, path = ordered(desk, "try-adapter", {"adapter": "clauses@1", "prompts.1": PROMPT, "max_tokens": "8"})
    (entry,) = ends(desk, "try.finished")
    assert (entry["outcome"], entry["body"]["code"]) == ("failure", "out-of-memory")
    assert "expected enough, got too little" in browser.get(path).text
