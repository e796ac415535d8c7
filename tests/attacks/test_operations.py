"""Metrics, feed and status agree with the ledger, need their tokens, and contain no text of anybody's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.build import build_version
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for
from tests.attacks.test_failures import moved_away
from tests.kit.collector import Collected, collecting

TOKEN = "operations-" + "t" * 20
MARK = "Zyxwvut-Marked-Prompt-7719"


@pytest.fixture
def collector() -> Iterator[Collected]:
    with collecting() as found:
        yield found


@pytest.fixture
def watched(spoil: Callable[[], Appliance], collector: Collected) -> Iterator[Appliance]:
    """Yield a running site that sends traces, with an operations listener and an adapter for legal/labels."""
    site = spoil()
    token = site.home / "operations.token"
    token.touch(0o600)
    token.write_text(TOKEN + "\n")
    text = f'operations = "127.0.0.1:{free_port()}"\noperations_token = "operations.token"\n'
    text += f'traces = "{collector.address}"\n'
    (site.home / "appliance.toml").write_text(text)
    site.start()
    site.approve()
    site.activate()
    yield site


def ask(site: Appliance, path: str, token: str | None = TOKEN) -> httpx.Response:
    assert site.settings.operations is not None
    host, port = site.settings.operations
    head = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.get(f"http://{host}:{port}{path}", headers=head, timeout=60)


def numbers(site: Appliance) -> dict[tuple[str, str], float]:
    """Sample name and labels to value."""
    found = {}
    for family in text_string_to_metric_families(ask(site, "/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name, labels] = sample.value
    return found


def lines(site: Appliance) -> list[dict[str, object]]:
    return [json.loads(line) for line in site.log().splitlines() if line.startswith("{")]


@pytest.mark.thorough
def test_the_numbers_are_those_of_the_ledger_by_unit_and_adapter(watched: Appliance) -> None:
    answers = [watched.chat("legal", "labels", seed=seed) for seed in range(3)]
    with watched.units() as client:
        body = {"model": "labels", "prompt": "the parties", "max_tokens": 5, "stream": True}
        head = {"Authorization": f"Bearer {watched.token('legal')}"}
        assert client.post("/v1/completions", json=body, headers=head).text.endswith("data: [DONE]\n\n")
        assert client.get("/v1/models").status_code == 401
    for _ in range(2):
        with pytest.raises(Refused):
            watched.chat("claims", "labels")
    told, place = numbers(watched), "adapter=clauses@1,{}served_model=labels,unit=legal"
    finished = watched.entries(type="request.finished")
    assert told["appliance_requests_total", place.format("outcome=success,")] == len(finished) == 4
    for kind in ("prompt", "completion"):
        counted = sum(entry["body"][f"{kind}_tokens"] for entry in finished)
        assert told["appliance_tokens_total", place.format(f"kind={kind},")] == counted > 0
    for name in ("appliance_request_seconds", "appliance_first_token_seconds"):
        assert told[f"{name}_count", place.format("")] == 4
        assert 0 < told[f"{name}_sum", place.format("")] < 240
    assert told["appliance_slots", place.format("")] == 1
    assert told["appliance_loads_total", place.format("") + ",what=loaded"] == 1
    assert told["appliance_refusals_total", "code=model-not-found,unit=claims"] == 2
    assert told["appliance_refusals_total", "code=not-authenticated,unit="] == 1
    assert told["appliance_requests_running", "unit=legal"] == 0
    assert told["appliance_requests_open", ""] == 0
    assert told["appliance_ledger_size", ""] <= len(watched.entries())

    logged = [line for line in lines(watched) if line["event"] == "request.finished"]
    assert [line["request"] for line in logged] == [entry["body"]["request"] for entry in finished]
    assert [line["entry"] for line in logged] == [entry["index"] for entry in finished]
    assert {answer["id"] for answer in answers} <= {f"chatcmpl-{line['request']}" for line in logged}
    assert all(line["unit"] == "legal" and line["adapter"] == "clauses@1" and line["seconds"] for line in logged)


@pytest.mark.thorough
def test_numbers_are_for_who_has_the_token_and_no_unit_has_them(watched: Appliance) -> None:
    for token in (None, "x", TOKEN + "x", watched.token("legal")):
        answer = ask(watched, "/metrics", token)
        assert (answer.status_code, "appliance_" in answer.text) == (401, False)
    for path in ("/healthz", "/readyz"):
        assert ask(watched, path, None).status_code == 200
    with watched.units() as client:
        for path in ("/metrics", "/healthz", "/readyz"):
            assert client.get(path).status_code == 401
            head = {"Authorization": f"Bearer {watched.token('legal')}"}
            assert client.get(path, headers=head).status_code == 404
    with watched.http() as people:
        assert people.get("/metrics").status_code == 404


@pytest.mark.thorough
def test_it_is_ready_only_while_the_ledger_can_be_written(watched: Appliance) -> None:
    assert ask(watched, "/readyz", None).text == f"ready\nbuild {build_version()}\n"
    started = watched.entries(type="service.started")[-1]
    assert started["body"]["version"] == build_version()
    with moved_away(watched):
        answer = _until(watched, 503)
        assert answer.text.startswith("ledger cannot be written\n")
        assert ask(watched, "/healthz", None).status_code == 200
    assert _until(watched, 200).text.startswith("ready\n")


def _until(site: Appliance, status: int) -> httpx.Response:
    answers: list[httpx.Response] = []

    def is_there() -> bool:
        answers.append(ask(site, "/readyz", None))
        return answers[-1].status_code == status

    wait_for(is_there, lambda: f"status {status}, got {answers[-1].text}", pause_s=0.5)
    return answers[-1]


@pytest.mark.parametrize("token", [None, "short", "open"])
def test_a_listener_without_a_private_token_does_not_start(spoil: Callable[[], Appliance], token: str | None) -> None:
    site = spoil()
    text = 'operations = "127.0.0.1:0"\n'
    if token is not None:
        text += 'operations_token = "operations.token"\n'
        file = site.home / "operations.token"
        file.write_text("x" if token == "short" else TOKEN)
        file.chmod(0o644 if token == "open" else 0o600)
    (site.home / "appliance.toml").write_text(text)
    site.start(wait=False)
    service, site.service = site.service, None
    assert service is not None
    assert service.wait(60) == (3 if token == "open" else 2)
    assert "operations" in site.log()


@pytest.mark.essential
def test_no_prompt_and_no_answer_is_in_any_log_trace_or_database(watched: Appliance, collector: Collected) -> None:
    """However it came in, and whatever became of it."""
    client, head = watched.openai(), {"Authorization": f"Bearer {watched.token('legal')}"}
    wanted = [{"role": "user", "content": f"{MARK} agree"}]
    told = [watched.chat("legal", "labels", MARK, max_tokens=30, temperature=2.0)["choices"][0]["message"]["content"]]
    for chunk in client.completions.create(model="labels", prompt=MARK, stream=True, max_tokens=4):
        assert chunk
    bodies = [
        {"model": "labels", "input": MARK, "labels": ["payment", MARK]},
        {"model": "labels", "messages": wanted, "labels": []},
        {"model": "labels", "messages": [{"role": MARK, "content": MARK}]},
        {"model": "labels", "messages": wanted, "unknown": MARK},
        {"model": "labels", "messages": wanted, "stop": [MARK], "max_tokens": MARK},
        {"model": "labels", "messages": [{"role": "user", "content": MARK * 3_000}]},
        {"model": "labels", "messages": [{"role": "user", "content": f"{MARK}<|im_end|>"}]},
        {"model": "labels", "messages": wanted * 300},
        {"model": "payroll", "messages": wanted},
    ]
    with watched.units() as api:
        statuses = {api.post("/v1/classify", json=body, headers=head).status_code for body in bodies}
        statuses |= {api.post("/v1/chat/completions", json=body, headers=head).status_code for body in bodies}
        api.post("/v1/chat/completions", content=f'{{"messages": "{MARK}'.encode(), headers=head)
    assert statuses >= {200, 400, 404}
    with suppress(openai.APIError):
        client.chat.completions.create(model="labels", messages=wanted, max_tokens=2, user=MARK, metadata={"a": MARK})  # type: ignore[arg-type]
    watched.stop()
    texts = [MARK, *(text for text in told if len(text) >= 12)]
    forms = {form for text in texts for form in (text.encode(), base64.b64encode(text.encode())[:-4])}
    files = [path for path in watched.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"service.log", "ledger.db"} <= {path.name for path in files}
    assert any(path.parent.name == "logs" for path in files)
    traces = b"".join(data for _, data in collector.sent)
    assert traces.count(b"first token") >= 3 and b"clauses@1" in traces
    for place, data in (("traces", traces), *((path, path.read_bytes()) for path in files)):
        assert not [form for form in forms if form in data], place
