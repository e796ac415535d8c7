"""Policy sets in folders and in the service, their adoption and comparison; the rules version; the log's clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from appliance.api.people import Clock, Policy, PolicyTest, PolicyTestResult, PolicyTestResults, Rules
from appliance.build import find_folder
from appliance.client.support.connection import Connection
from appliance.client.support.files import read_file, write_folder
from appliance.client.support.log import fetch_document
from appliance.client.support.orders import Pending, check_origin, parse_pending
from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.governance.log_control import ResetClock
from appliance.domain.governance.policies import (
    ADOPTED_FILES,
    PARAMETERS,
    POLICIES,
    SCHEMA,
    TESTS,
    assemble_policy,
    list_diff_lines,
)
from appliance.errors import BadInput, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes

_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """A policy set and its adopted bytes. Those of an earlier build can lack parameters, and keep their digest."""

    data: bytes
    policy: PolicySet

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)


def load_policy(path: Path) -> PolicyDocument:
    """Read a policy set from a folder that has its name, or from a file in canonical JSON.

    A folder without a schema gets the shipped one.

    Raises: NotFound; BadInput for a malformed set.
    """
    if path.is_file():
        data = read_file(path, "policy set", 2 * _MAX_BYTES).removesuffix(b"\n")
        return PolicyDocument(data, parse_policy(data))
    if not path.is_dir():
        raise NotFound(f"policy set, {path}: expected a folder with {', '.join(ADOPTED_FILES)}, got nothing")
    shipped = find_folder("policies") / "default" / SCHEMA
    found = sorted(path.iterdir())
    files = {file.name: read_file(file, "policy set", _MAX_BYTES) for file in (shipped, *found)}
    policy = assemble_policy(path.resolve().name, files)
    return PolicyDocument(encode_value(policy), policy)


def current_policy(connection: Connection) -> PolicyDocument:
    """Return the valid policy set, from its document's bytes.

    Raises: Tampered if the bytes do not have the digest that the service names.
    """
    found = connection.get("/v1/policy", Policy)
    if digest_bytes(found.document) != found.digest:
        raise Tampered(f"policy set: expected {found.digest}, got {digest_bytes(found.document)}")
    return PolicyDocument(found.document, parse_policy(found.document))


def write_policy(folder: Path, document: PolicyDocument) -> str:
    """Write the set's files durably to a new folder; return the digest that the folder has when it is adopted.

    It is the document's own digest if the folder has the set's name and the set has every parameter of this build.

    Raises: Conflict if the folder exists.
    """
    # Only parameters of the document are written: the default of another one was not chosen by anybody.
    parameters = json.loads(document.data)["parameters"]
    files = {
        PARAMETERS: json.dumps(parameters, indent=2, ensure_ascii=False) + "\n",
        POLICIES: document.policy.cedar,
        SCHEMA: document.policy.cedar_schema,
    }
    write_folder(folder, {name: text.encode("utf-8") for name, text in files.items()}, "policy set")
    return load_policy(folder).digest


def list_changes(connection: Connection, new: PolicySet) -> list[str]:
    """Return the differences between the valid set and this one, as lines of a unified diff."""
    return _list_changes(current_policy(connection).policy, new)


def list_ordered_changes(connection: Connection, proved: Pending) -> tuple[list[str], str | None]:
    """Return the differences that a proved order to adopt a set makes to the set that was valid at its entry.

    The second value is the digest of the set that the service serves, if that is another one.
    """
    assert proved.policy is not None
    old = parse_policy(fetch_document(connection, proved.policy, "policy set"))
    served = current_policy(connection).digest
    changes = _list_changes(old, parse_policy(proved.proposal.documents["policy"]))
    return changes, None if served == proved.policy else served


def _list_changes(old: PolicySet, new: PolicySet) -> list[str]:
    return list_diff_lines(old, new) or ["No text differs from the valid set."]


def run_cases(connection: Connection, path: Path) -> tuple[PolicyTestResult, ...]:
    """Return the decisions of the service's own engine on the set's test cases."""
    cases = read_file(path / TESTS, "policy test cases", _MAX_BYTES)
    body = PolicyTest(policy=load_policy(path).data, cases=cases)
    results = connection.post("/v1/policy/test", PolicyTestResults, body).results
    if not results:
        raise BadInput(f"policy test cases, {path / TESTS}: expected at least one, got none")
    return results


def read_rules(connection: Connection) -> Rules:
    """Return the valid rules version."""
    return connection.get("/v1/rules", Rules)


@dataclass(frozen=True)
class ClockAnswer:
    """The log's clock.

    `last` is the time of the log's last entry, `now` the host's time. While `is_behind`, the service records nothing
    until the clock is set right or reset. `waiting` are the orders to reset it that wait for a second administrator.
    """

    last: str
    now: str
    is_behind: bool
    waiting: tuple[Pending, ...]


def read_clock(connection: Connection) -> ClockAnswer:
    """Return the log's clock.

    Raises: Tampered if a waiting order is another log's or another kind of order.
    """
    clock = connection.call("GET", "/v1/clock", Clock, reading=False)
    waiting = tuple(map(parse_pending, clock.waiting))
    for pending in waiting:
        check_origin(pending.proposal.order, connection.about.origin)
        if not isinstance(pending.proposal.order, ResetClock):
            raise Tampered(f"clock, order {pending.digest}: expected reset-clock, got {pending.proposal.order.action}")
    return ClockAnswer(clock.last, clock.now, clock.behind, waiting)


def find_reset(clock: ClockAnswer) -> Pending:
    """Return the newest waiting order that names the log's last entry.

    Raises: NotFound if there is none.
    """
    for pending in reversed(clock.waiting):
        order = pending.proposal.order
        if isinstance(order, ResetClock) and order.last == clock.last:
            return pending
    raise NotFound("clock: expected an order to reset it, got none; an administrator types: appliance clock reset")
