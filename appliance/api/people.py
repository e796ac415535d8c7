"""Sessions, orders, people, and the policy set."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.api.wire import Bytes, Disclosure, Envelope
from appliance.domain.core.names import Time, Value
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records import people as records
from appliance.errors import Refusal


class Challenge(Value):
    """A random value that the statement of a new session contains.

    `identity_page` is the console's page on which a person gets an ID token, or None if policy requires none or there
    is no console.
    """

    nonce: str
    identity_page: str | None


class SessionRequest(Value):
    """A signed statement that opens a session, with an ID token if policy requires one."""

    envelope: dict[str, Any]
    identity_token: str | None = Field(default=None, max_length=8_192)


class OpenedSession(Value):
    """An open session with its secret token."""

    token: str
    principal: str
    roles: tuple[str, ...]
    expires_at: Time


class EmptyBody(Value):
    """An empty request or response."""


class ConsoleAddress(Value):
    """The address of the console, such as `https://appliance.bank.example`."""

    url: str


class ConsoleLink(Value):
    """A link that opens a session in a browser once, for so many seconds."""

    url: str
    seconds: int


class OrderRequest(Value):
    """A signed order with its disclosed texts and its documents."""

    envelope: dict[str, Any]
    disclosures: tuple[Disclosure, ...] = Field(default=(), max_length=16)
    documents: dict[str, Bytes] = Field(default={}, max_length=16)


class OrderReceipt(Value):
    """The entry of an order with its proof. `waiting` counts the orders that the signer could countersign."""

    bytes: Bytes
    proof: tuple[Bytes, ...]
    checkpoint: str
    waiting: int


class OrderCheck(Value):
    """An order, to be checked without a signature."""

    statement: Bytes = Field(max_length=1_000_000)


class OrderRefusals(Value):
    """The reasons for which an order would be refused; empty if it would be accepted."""

    refusals: tuple[Refusal, ...]


class PendingOrder(records.PendingOrder):
    """An order that waits for a second administrator, without the documents that it binds.

    `disclosures` are its texts, such as a person's reason. There are none without a session.
    `blockers` are the reasons for which it cannot be carried out any more. `documents` has the digest of each document,
    by its role.
    """

    blockers: tuple[Refusal, ...]
    envelope: Envelope
    disclosures: tuple[Disclosure, ...]
    documents: dict[str, str]


class WaitingOrder(Value):
    """A pending order in short form."""

    order: str
    action: str
    signer: str
    expires_at: Time


class Clock(Value):
    """The log's clock.

    `last` is the time of the log's last entry, `now` the host's time. While it is `behind`, the service records nothing
    until the clock is set right or reset. `waiting` are the orders to reset it that wait for a second administrator.
    """

    last: Time
    now: Time
    behind: bool
    waiting: tuple[PendingOrder, ...]


class Policy(Value):
    """The valid policy set, the bytes of its document and their digest."""

    digest: str
    policy: PolicySet
    document: Bytes


class PolicyTest(Value):
    """A policy set and its test cases."""

    policy: Bytes
    cases: Bytes


class PolicyTestResult(Value):
    """The decision on one test case."""

    name: str
    passed: bool
    expected: str
    got: str


class PolicyTestResults(Value):
    """The decisions on all test cases of a policy set."""

    results: tuple[PolicyTestResult, ...]


class Rules(Value):
    """The rules version, the newest version that the service's build supports, and the entry that set the version."""

    version: int
    newest: int
    entry: int


class UploadReceipt(Value):
    """A stored upload."""

    digest: str
    bytes: int
