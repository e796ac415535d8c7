"""Tries every listener: schemathesis with its OpenAPI document, and hypothesis with forms and with signed-in people.

No request may be answered with 500 or later than its time, no exception may be unforeseen, and the process that serves
may not take more memory than its bound.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, FlakyFailure

from appliance.domain.actions.registry import ACTIONS
from appliance.formats.core.fields import encode_base64
from appliance.web.console.pages import list_operations
from appliance.web.console.signing.forms import fields_of
from appliance.web.core.openapi import Operation
from scripts.references.listeners import DOCUMENTS
from tests.fuzz.inputs import TEXTS
from tests.fuzz.parsers import Finding
from tests.fuzz.seeds import ROOT, orders

SCHEMATHESIS = ROOT / ".venv-schemathesis/bin/st"
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,ignored_auth"
ANSWER_S = 20.0
"""Most seconds of a response."""
MEMORY_BYTES = 400 << 20
"""Most memory that the serving process may take beyond what it has when it begins."""
ENDS_SESSION = ("/v1/sessions/own", "/v1/console/links")
"""Addresses that end the session, or give it away. All requests have the same one."""
START_S = 300.0
ROUND_S = 600.0
"""Most seconds with one server, which are fewer than those of a session."""
SHARES = {"people": 0.35, "units": 0.25, "operations": 0.1}
"""Shares of the time that is left, by listener. The console has the rest."""
VISITS = 60
"""Requests that hypothesis makes before it begins again."""


@dataclass
class Asked:
    """The findings, and the number of requests by listener."""

    findings: list[Finding] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)


class Server:
    """A running server and its output."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], told: Mapping[str, Any]) -> None:
        self.folder, self.process, self.told = folder, process, told
        self._begun = self.memory_bytes()

    def memory_bytes(self) -> int:
        """Return the most memory that the process has had, in bytes."""
        status = Path(f"/proc/{self.told['pid']}/status").read_text(encoding="ascii")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def find_problems(self) -> Iterator[str]:
        """Yield what went wrong in the process."""
        if (code := self.process.poll()) is not None:
            yield f"the server ended with {code}"
            return
        if (grown := self.memory_bytes() - self._begun) > MEMORY_BYTES:
            yield f"the server took {grown >> 20} MiB more than at its beginning"
        written = (self.folder / "exceptions").read_text(encoding="utf-8", errors="replace")
        for text in dict.fromkeys(re.split(r"\n(?=\S)", written)):
            if re.match(r"\w*(\.\w+)*(Error|Exception|Warning)\b", text):
                yield text[:400]


@contextmanager
def start_server(folder: Path, module: str) -> Iterator[Server]:
    """Start a server of its own process, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("server.json", "exceptions"):
        (folder / name).unlink(missing_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    assert process.stdin is not None
    try:
        until = time.monotonic() + START_S
        while not (folder / "server.json").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"fuzz: expected a server, got none; see {folder / 'server.log'}")
            time.sleep(0.1)
        yield Server(folder, process, json.loads((folder / "server.json").read_text()))
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def try_listeners(folder: Path, seconds: float, seed: int, module: str = "tests.fuzz.server") -> Asked:
    """Try all listeners for so many seconds. A server with sessions of its own is started for each round."""
    asked, until = Asked(), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        _try_server(folder / "server", min(left, ROUND_S), seed, asked, module)
        seed += 1
    return asked


def _try_server(folder: Path, seconds: float, seed: int, asked: Asked, module: str) -> None:
    until = time.monotonic() + seconds
    with start_server(folder, module) as server:
        for name, share in SHARES.items():
            ask_by_document(server, name, max(3.0, (until - time.monotonic()) * share), seed, asked)
        with contextlib.closing(Visits(server, seed, asked)) as people:
            people.run(max(until, time.monotonic() + 3.0))
        found = list(server.find_problems())
    asked.findings += [Finding("server", problem, str(server.folder / "exceptions")) for problem in found]


NAMES = (
    *(
        "clauses@1",
        "clauses",
        "smollm2",
        "exam@1",
        "tried-1",
        "r-000001",
        "legal",
        "labels",
        "rita",
        "anna",
        "0",
        "5",
        "21",
    ),
    *("order", "manifest", "grant", "review", "train", "access", "99999999999999999999", "-1", "1.5", "%2e%2e", "a/b"),
)
"""Parts of addresses: things of the log, and others."""

# --- schemathesis -----------------------------------------------------------------------------------------------------


def ask_by_document(server: Server, name: str, seconds: float, seed: int, asked: Asked) -> None:
    """Let schemathesis make requests from a listener's document."""
    _, describe = DOCUMENTS[name]
    document, report = server.folder / f"{name}.json", server.folder / f"{name}-report.json"
    document.write_text(json.dumps(_name_things(describe())))
    report.unlink(missing_ok=True)
    words = [
        "run",
        str(document),
        "--url",
        server.told["urls"][name],
        "--checks",
        CHECKS,
        "--max-time",
        f"{seconds:.0f}",
    ]
    words += ["--request-timeout", str(ANSWER_S), "--seed", str(seed), "--continue-on-failure", "--workers", "2"]
    words += ["--max-examples", "1000" if seconds > 60 else "20", "--phases", "coverage,fuzzing", "--no-color"]
    words += ["--suppress-health-check", "all", "--warnings", "off", "--output-sanitize", "false"]
    words += ["--generation-database", str(server.folder / "examples"), "--report", "json"]
    words += ["--report-json-path", str(report), "--header", f"Authorization: Bearer {_token(server, name)}"]
    for path in ENDS_SESSION:
        words += ["--exclude-path", path]
    done = subprocess.run(
        [SCHEMATHESIS, *words],
        cwd=server.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds * 3 + 120,
    )
    (server.folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"fuzz, {name}: expected schemathesis to run, got: {(done.stdout + done.stderr)[-800:]}")
    asked.requests[name] = _read_report(report, name, asked)


def _token(server: Server, name: str) -> str:
    told = server.told
    return str(
        {"people": told["sessions"]["administrator"], "units": told["unit"]}.get(name, told["operations"]["feed"])
    )


def _read_report(report: Path, name: str, asked: Asked) -> int:
    """Add a report's failures to the findings; return its number of requests. The text beside it repeats each."""
    found, text = json.loads(report.read_text(encoding="utf-8")), report.with_name(f"{name}.txt")
    for one in [*found["failures"], *found["errors"]]:
        for operation in one.get("operations") or [""]:
            problem = str(one.get("title") or one)[:400]
            asked.findings.append(Finding(f"{name} {operation}".strip(), problem, str(text)))
    return int(found["test_cases"]["generated"])


def _name_things(value: Any, name: str = "") -> Any:
    """Return a document whose parameters and statements may also be those of the log, so that requests go further."""
    if isinstance(value, list):
        return [_name_things(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "schema" in value and value.get("in") in ("path", "query"):
        return {**value, "schema": {"anyOf": [value["schema"], {"type": "string", "enum": list(NAMES)}]}}
    if name == "statement" and value.get("type") == "string":
        return {"anyOf": [value, {"type": "string", "enum": [encode_base64(data) for data in orders()]}]}
    return {key: _name_things(one, key) for key, one in value.items()}


# --- people at the console --------------------------------------------------------------------------------------------

_WILD_TEXT = st.sampled_from((*NAMES, *(one for one in TEXTS if one))) | st.text(max_size=20)


def _encode(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _is_tried(name: str) -> bool:
    """Return False for streams, which do not end, and for the end of a session."""
    return not name.endswith("/events") and name != "POST /sign-out"


@dataclass(frozen=True)
class Visit:
    """A request to the console."""

    person: str
    method: str
    address: str
    body: bytes | None
    headers: Mapping[str, str]


@st.composite
def visits(draw: st.DrawFn, operations: Mapping[str, Operation], csrf: Mapping[str, str]) -> Visit:
    """Draw a person's request with arbitrary parts of the address, parameters, forms, bodies and headers."""
    person = draw(st.sampled_from((*csrf, "nobody")))
    name = draw(st.sampled_from(sorted(operations)))
    method, _, path = name.partition(" ")
    operation, action = operations[name], draw(st.sampled_from(sorted(ACTIONS)))

    def fill(found: re.Match[str]) -> str:
        return _encode(action if found[1] == "action" and draw(st.integers(0, 9)) else draw(_WILD_TEXT))

    address = re.sub(r"\{([a-z_]+)(?::path)?\}", fill, path)
    known = [] if operation.query is None else sorted(operation.query.model_fields)
    pairs = draw(st.lists(st.tuples(st.sampled_from([*known, "x"]), _WILD_TEXT), max_size=4))
    if pairs and draw(st.integers(0, 2)):
        address += "?" + "&".join(f"{_encode(key)}={_encode(value)}" for key, value in pairs)
    body, kind = None, "application/x-www-form-urlencoded"
    if method != "GET":
        body = draw(_bodies(operation, action if "{action}" in path else None, csrf.get(person, "")))
        kind = draw(st.sampled_from((kind, kind, kind, kind, "application/json", "multipart/form-data", "")))
    headers = {"Content-Type": kind} if body is not None else {}
    if draw(st.integers(0, 9)):
        headers |= {"Sec-Fetch-Site": "same-origin", "Origin": "null"}
    if draw(st.integers(0, 9)) == 0:
        headers |= {
            draw(st.sampled_from(("Last-Event-ID", "Accept", "Cookie", "Range"))): "\u00ff\u0001=;,"[
                : draw(st.integers(1, 5))
            ]
        }
    return Visit(person, method, address, body, headers)


@st.composite
def _bodies(draw: st.DrawFn, operation: Operation, action: str | None, csrf: str) -> bytes:
    """Draw a form with its fields and an example order's values if it is one, or other bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    names = list(operation.fields)
    texts: dict[str, str] = {}
    if action is not None and ACTIONS[action].has_form:
        names += [one.name for one in fields_of(action)]
        example = json.loads(ACTIONS[action].example.model_dump_json())
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in example.items()}
    fields = {}
    for name in names:
        match draw(st.integers(0, 5)):
            case 0:
                continue
            case 1 | 2:
                fields[name] = draw(_WILD_TEXT)
            case _:
                fields[name] = texts.get(name, draw(_WILD_TEXT))
    if draw(st.integers(0, 9)):
        fields["csrf"] = csrf
    return urlencode({name: text.encode("utf-8", "surrogatepass") for name, text in fields.items()}).encode()


class Failed(Exception):
    """A request that was answered as none may be."""


class Visits:
    """Requests to the console, with and without a session."""

    def __init__(self, server: Server, seed: int, asked: Asked) -> None:
        self._server, self._asked = server, asked
        self._random = random.Random(seed)
        self._csrf: Mapping[str, str] = server.told["csrf"]
        self._browsers = {name: self._open(cookies) for name, cookies in server.told["cookies"].items()}
        self._browsers["nobody"] = self._open({})

    def _open(self, cookies: Mapping[str, str]) -> httpx.Client:
        timeout = httpx.Timeout(ANSWER_S)
        url = self._server.told["urls"]["console"]
        return httpx.Client(base_url=url, cookies=dict(cookies), timeout=timeout, trust_env=False)

    def close(self) -> None:
        """End the connections of all browsers."""
        for browser in self._browsers.values():
            browser.close()

    def run(self, until: float) -> None:
        operations = {
            name: one
            for name, one in list_operations().items()
            if not name.endswith("/events") and name != "POST /sign-out"
        }
        while time.monotonic() < until and self._server.process.poll() is None:
            self._visit(operations, until)

    def _visit(self, operations: Mapping[str, Operation], until: float) -> None:
        found: dict[str, Visit] = {}

        @settings(
            max_examples=VISITS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
        )
        @given(visits(operations, self._csrf))
        def act(visit: Visit) -> None:
            if time.monotonic() >= until and not found:
                return
            problem = self._send(visit)
            if problem is not None:
                found[problem] = visit
                raise Failed(problem)

        try:
            act()
        except (Failed, Flaky, FlakyFailure):
            for problem, visit in found.items():
                path = self._server.folder / f"visit-{len(self._asked.findings)}"
                path.write_text(repr(visit))
                where = f"console {visit.method} {visit.address.partition('?')[0]}"
                self._asked.findings.append(Finding(where, problem, str(path)))

    def _send(self, visit: Visit) -> str | None:
        """Send a request; return what is wrong with its answer."""
        self._asked.requests["console"] = self._asked.requests.get("console", 0) + 1
        browser = self._browsers[visit.person]
        headers = {name: value.encode("latin-1", "replace") for name, value in visit.headers.items()}
        for is_last in (False, True):  # a connection that was idle may have ended
            try:
                answer = browser.request(visit.method, visit.address, content=visit.body, headers=headers)
            except httpx.TimeoutException:
                return f"no answer within {ANSWER_S:.0f} s"
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if is_last:
                    return f"the connection ended: {error}"
            except (httpx.LocalProtocolError, httpx.InvalidURL):
                return None
            else:
                return _judge(answer.status_code)
        raise AssertionError("unreachable: the last try returns")


def _judge(status: int) -> str | None:
    """Return what is wrong with a status. The console refuses work that is off with 503."""
    return f"status {status}" if status >= 500 and status != 503 else None
