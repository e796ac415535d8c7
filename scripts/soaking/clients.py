"""The units' clients: they read answers fast, slowly or in part, and compare every text with the recorded ones."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx

from appliance.domain.evaluation.quality import VLLM
from scripts.soaking.deployment import SERVED_MODEL, Deployment
from scripts.soaking.record import Given, Record

TIMEOUT_S = 90.0
VLLM_TIMEOUT_S = 600.0
"""Its worker takes 15 s to start, and minutes where many other programs share the cores."""
WAITING = 0.05
FOUND_S = 10.0
GRACE_S = 1.0
"""A token may be this long on its way to a client that reads quickly."""
TOKEN_S = 600.0
MANNERS = ["whole"] * 50 + ["stream"] * 27 + ["leave"] * 15 + ["foreign"] * 6 + ["slow"] * 2
REFUSALS = {403: {"not-admitted", "denied"}, 429: None, 503: None}
"""Statuses that are allowed during changes and failures, each with its allowed codes; None allows every code."""
BROKEN_OFF = {"cut-off", "engine-ended", "worker-ended", "answer-failed", "out-of-memory", "not-finite", "unavailable"}
BROKEN_OFF |= {"denied", "commit-unknown", "unrecorded", "no-contact"}


def longest_s(engine: str) -> float:
    """Return the longest time of an answer in seconds."""
    return VLLM_TIMEOUT_S if engine == VLLM else TIMEOUT_S


class Client(threading.Thread):
    """One client of one unit; sends requests until there are no more tickets."""

    def __init__(self, deployed: Deployment, record: Record, unit: str, seed: int, ticket: Callable[[], bool]) -> None:
        super().__init__(name=f"client of {unit}", daemon=True)
        self._deployment, self._record, self._unit, self._ticket = deployed, record, unit, ticket
        self._chance = random.Random(seed)
        self._clients = {one.name: httpx.Client(base_url=one.site.url, timeout=TIMEOUT_S) for one in deployed.gateways}
        self._gateway = deployed.gateways[0]
        self._token, self._until = "", 0.0

    def run(self) -> None:
        with ExitStack() as stack:
            for client in self._clients.values():
                stack.enter_context(client)
            while self._ticket():
                self._choose_gateway()
                self._ask()

    def _choose_gateway(self) -> None:
        """Any that is up; a token counts at each. Few wait for a worker that starts: the others have work."""
        now = time.monotonic()
        up = [one for one in self._deployment.gateways if not self._record.was_down(one.name, now)]
        ready = [one for one in up if one.name not in self._record.restarting]
        up = ready if ready and self._chance.random() > WAITING else up
        self._gateway = self._chance.choice(up or list(self._deployment.gateways))
        self._record.wait_until_up(self._gateway.name, TIMEOUT_S)

    @property
    def _http(self) -> httpx.Client:
        return self._clients[self._gateway.name]

    def _was_down(self, since: float) -> bool:
        """Return True if the gateway was ended on purpose, or the supervisor finds that it has ended."""
        until = time.monotonic() + FOUND_S
        while not (down := self._record.was_down(self._gateway.name, since)) and time.monotonic() < until:
            time.sleep(0.1)
        return down

    def _ask(self) -> None:
        manner, place = self._chance.choice(MANNERS), self._chance.randrange(len(self._deployment.questions))
        if manner == "foreign":
            return self._ask_foreign()
        if self._deployment.questions[place].kind == "classify":
            manner = "whole"
        self._record.count("requests")
        sent = time.monotonic()
        try:
            if manner == "whole":
                self._read_whole(place, sent)
            else:
                self._read_stream(place, sent, manner)
        except httpx.TimeoutException:
            longest = longest_s(self._gateway.engine)
            self._record.violate(f"{self._unit}: expected an end within {longest:.0f} s, got none ({manner})")
        except httpx.TransportError as error:
            if not self._was_down(sent):
                self._record.violate(
                    f"{self._unit}: expected to reach the service, got {type(error).__name__}: {error}"
                )
            self._record.count("not reached")
        return None

    def _body(self, place: int, **more: Any) -> dict[str, Any]:
        return {"model": SERVED_MODEL, **self._deployment.questions[place].body, **more}

    def _head(self) -> dict[str, str]:
        if time.monotonic() > self._until:
            self._token, self._until = self._deployment.site.token(self._unit), time.monotonic() + TOKEN_S
        return {"Authorization": f"Bearer {self._token}"}

    def _read_whole(self, place: int, sent: float) -> bool:
        """Return True if the request was answered."""
        answer = self._http.post(self._deployment.questions[place].path, json=self._body(place), headers=self._head())
        if answer.status_code != 200:
            self._take_refusal(answer)
            return False
        body = answer.json()
        if self._deployment.questions[place].kind == "classify":
            text = json.dumps({k: f"{v:.9f}" for k, v in body["data"][0]["probabilities"].items()}, ensure_ascii=False)
        else:
            choice = body["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
        self._evaluate(place, text, body, sent, whole=True)
        return True

    def _read_stream(self, place: int, sent: float, manner: str) -> None:
        text, head, whole, latest = "", {}, False, 0.0
        pieces = self._chance.randrange(1, 6)
        options = {"json": self._body(place, stream=True), "headers": self._head()}
        with self._http.stream("POST", self._deployment.questions[place].path, **options) as answer:
            if answer.status_code != 200:
                answer.read()
                return self._take_refusal(answer)
            for event in _events(answer):
                if event == "[DONE]":
                    whole = True
                elif "error" in event:
                    self._take_break(event["error"])
                else:
                    head, piece = event, _piece(event)
                    text += piece
                    latest = time.monotonic() if piece else latest
                    pieces -= bool(piece)
                if manner == "leave" and pieces <= 0:
                    self._record.count("cancelled by their client")
                    break
                if manner == "slow":
                    time.sleep(self._chance.random() * 0.2)
        if head and (text or whole):
            self._evaluate(place, text, head, sent, whole=whole, latest=0.0 if manner == "slow" else latest)
        return None

    def _take_refusal(self, answer: httpx.Response) -> None:
        try:
            error = answer.json()["error"]
        except (ValueError, KeyError):
            return self._record.violate(f"{self._unit}: expected an error in OpenAI's form, got {answer.text[:200]!r}")
        codes = REFUSALS.get(answer.status_code, set())
        # What breaks before the first piece of an answer has the status of an error; a cut is one of them.
        known = codes is None or error["code"] in codes or error["code"] in BROKEN_OFF
        if not known or answer.status_code in (404, 500):
            self._record.violate(f"{self._unit}: expected an answer or a refusal, got {answer.status_code} {error}")
        self._record.count(f"refused: {error['code']}")
        if answer.status_code in (429, 503):
            time.sleep(0.1)
        return None

    def _take_break(self, error: dict[str, Any]) -> None:
        self._record.count(f"broken off: {error['code']}")
        if error["code"] not in BROKEN_OFF:
            self._record.violate(f"{self._unit}: expected an answer or its cut, got {error}")

    def _evaluate(
        self, place: int, text: str, head: dict[str, Any], sent: float, *, whole: bool, latest: float = 0.0
    ) -> None:
        """Check that the text is the mark of the adapter that the answer names, and that it was valid."""
        self._record.count("answered whole" if whole else "answered in part")
        self._record.restarting.discard(self._gateway.name)
        named = next((n for n, m in self._deployment.manifests.items() if m == head["system_fingerprint"]), "nobody")
        engine = self._gateway.engine
        if self._deployment.questions[place].kind == "classify":
            found = self._deployment.find_shares(engine, place, text)
        else:
            found = self._deployment.given_by(engine, place, text, whole=whole)
        request = head["id"].rpartition("-")[2]
        if whole and named in found and text != self._deployment.answers[engine][named][place]:
            self._record.count("rounded otherwise than its mark")
        if named not in found:
            said = f"got {text[:40]!r}, which is given by {found or 'nobody'}"
            self._record.violate(f"{self._unit}, request {request}: expected the mark of {named}, {said}")
        if named not in self._deployment.adapters[self._unit]:
            self._record.violate(f"{self._unit}, request {request}: expected an adapter of its own, got {named}")
        ended = self._record.revoked.get(named, float("inf"))
        if sent > ended or latest > ended + GRACE_S:
            self._record.violate(f"{self._unit}, request {request}: expected no token of {named}, which was revoked")
        self._record.keep(Given(request, named, whole, engine))

    def _ask_foreign(self) -> None:
        """Request models that are not released to the unit: another unit's adapter, the base, an unknown name."""
        self._record.count("foreign names")
        others = [name for unit, names in self._deployment.adapters.items() if unit != self._unit for name in names]
        model = self._chance.choice(
            [*others[:4], "tiny", "", f"{SERVED_MODEL}@1", self._deployment.adapters[self._unit][0]]
        )
        sent = time.monotonic()
        try:
            answer = self._http.post(
                self._deployment.questions[0].path, json=self._body(0, model=model), headers=self._head()
            )
        except httpx.TransportError:
            if not self._was_down(sent):
                self._record.violate(f"{self._unit}: expected to reach the service with a foreign name, it did not")
            return
        if answer.status_code not in (404, 503):
            self._record.violate(f"{self._unit}: expected nobody to answer {model!r}, got {answer.status_code}")


def _events(answer: httpx.Response) -> Iterator[Any]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def _piece(event: dict[str, Any]) -> str:
    if not event["choices"]:
        return ""
    choice = event["choices"][0]
    return str(choice["delta"].get("content", "") if "delta" in choice else choice["text"])
