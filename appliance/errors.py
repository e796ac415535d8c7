"""Errors that the service and its programs raise on purpose.

There is one root with few branches, by who must act. Each class has a stable `code` (for programs), an `exit_code` (for
shells) and an HTTP `status`. A message reads "what, which: expected X, got Y".

    ApplianceError
    ├── BadInput          2 / 400   the caller's bytes or words are wrong
    │   └── TooLarge      2 / 413   the input is over a stated limit
    ├── NotAuthenticated  3 / 401   no valid key, session or token
    ├── Denied            3 / 403   known but not allowed: lists all reasons
    │   └── QuotaExceeded        3 / 429   a quota is used up; allowed again later
    ├── NotFound          4 / 404   it does not exist, as far as the caller may know
    ├── Conflict          5 / 409   replay, duplicate or wrong state
    ├── Tampered          6 / 422   bytes, a signature or the history are invalid
    └── Unavailable       7 / 503   the machine, database or sandbox is not available now
        └── RateLimited       7 / 429   too many requests; retry later
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Literal, Self, get_args

Kind = Literal["rule", "policy", "condition", "state", "order", "machine"]
"""The origin of a refusal.

A rule cannot be relaxed. A policy is a parameter or a Cedar policy of the valid policy set. A condition is one of an
approval or a release request. The others are the state of a thing, a value in the order, and the machine.
"""

KINDS: Mapping[Kind, str] = {
    "rule": "rule that no policy can relax",
    "policy": "valid policy set",
    "condition": "condition of an approval or a release request",
    "state": "present state",
    "order": "value in the order",
    "machine": "condition of this machine",
}
"""Each kind in words."""

RefusalValue = int | str | tuple[str, ...]


class Rejected(str):
    """A value that the log does not know, such as a name that is not enrolled.

    The person who sent it sees it. The log records `recorded` instead, which is its length by default.
    """

    recorded: str

    def __new__(cls, text: str, recorded: str = "") -> Rejected:
        """Return the value."""
        value = super().__new__(cls, text)
        value.recorded = recorded or f"(text of {len(text)} characters)"
        return value


@dataclass(frozen=True)
class RefusalCode:
    """A reason for which a rule refuses. It is declared once, beside its rule, and called to make a refusal.

    `sentence` and `remedy` are templates over the refusal's values. `{id}` is the name in its subject.
    """

    name: str
    kind: Kind
    sentence: str
    remedy: str
    order_field: str = ""
    """Name of the order's field that the reason is about, if a person can correct it there."""

    def __post_init__(self) -> None:
        if self.name in REFUSAL_CODES or self.kind not in get_args(Kind):
            raise TypeError(f"refusal code {self.name}: expected a new name and one of {get_args(Kind)}")
        REFUSAL_CODES[self.name] = self

    @property
    def fields(self) -> frozenset[str]:
        """Return the names of the values of its refusals."""
        parts = [*Formatter().parse(self.sentence), *Formatter().parse(self.remedy)]
        return frozenset(name for _, name, _, _ in parts if name) - {"id"}

    def __call__(self, subject: str = "order", /, **values: RefusalValue) -> Refusal:
        """Return a refusal for this reason about a subject, such as `adapter:clauses@1`."""
        if values.keys() != self.fields:
            raise TypeError(f"refusal {self.name}: expected the values {sorted(self.fields)}, got {sorted(values)}")
        words = {name: ", ".join(one) if isinstance(one, tuple) else one for name, one in values.items()}
        words["id"] = subject.partition(":")[2]
        sentence, remedy = self.sentence.format_map(words), self.remedy.format_map(words)
        return Refusal(self.name, subject, values, self.kind, sentence, remedy)


REFUSAL_CODES: dict[str, RefusalCode] = {}
"""Every declared refusal code by its name."""


@dataclass(frozen=True)
class Refusal:
    """A reason why an action is refused: a code, the subject that it is about, and the values of its sentence."""

    code: str
    subject: str
    values: Mapping[str, RefusalValue] = field(hash=False)
    kind: Kind
    sentence: str
    remedy: str

    @property
    def order_field(self) -> str:
        """Return the name of the order's field that the reason is about, or ""."""
        code = REFUSAL_CODES.get(self.code)
        return "" if code is None else code.order_field

    def __str__(self) -> str:
        """Return the sentence with the remedy."""
        return f"{self.sentence} {self.remedy}".strip()


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class ApplianceError(Exception):
    """The base of all expected errors. Any other exception is a defect."""

    code = "error"
    exit_code = 1
    status = 500
    refusals: tuple[Refusal, ...] = ()
    """The reason of every rule that refuses; only a denial has some."""
    claimed: tuple[str, str] | None = None
    """The signer and key id that a failed attempt claimed, for the count of attempts that have no entry of their own.
    """

    def __init__(self, message: str, *, reasons: tuple[str, ...] = (), code: str | None = None) -> None:
        """Create an error; the message ends with all `reasons`, if there are any.

        Lone surrogates, such as those of a file name that is not UTF-8, are escaped, so that every message can be sent.
        """
        message, reasons = _escape_surrogates(message), tuple(map(_escape_surrogates, reasons))
        full_message = message if not reasons else f"{message}: {'; '.join(reasons)}"
        super().__init__(full_message)
        self.summary = message
        """The message without the reasons and refusals."""
        self.message = full_message
        self.reasons = reasons
        if code is not None:
            self.code = code

    @property
    def sentences(self) -> str:
        """The sentences of all refusals, or the message without its reasons if there are no refusals."""
        return " ".join(one.sentence for one in self.refusals) or self.summary

    def within(self, where: str) -> Self:
        """Return the same error with a message that begins with the place where it was found."""
        error = copy.copy(self)
        error.summary, error.message = f"{where}: {self.summary}", f"{where}: {self.message}"
        error.args = (error.message,)
        return error


class BadInput(ApplianceError):
    """The caller's bytes or words are invalid; a retry without a change cannot succeed."""

    code = "bad-input"
    exit_code = 2
    status = 400


class TooLarge(BadInput):
    """The input is over a limit, which the message names."""

    code = "too-large"
    status = 413


class NotAuthenticated(ApplianceError):
    """There is no valid key, session or token."""

    code = "not-authenticated"
    exit_code = 3
    status = 401


class Denied(ApplianceError):
    """The caller is known but not allowed; `refusals` has the reason of every rule that refuses."""

    code = "denied"
    exit_code = 3
    status = 403

    def __init__(self, message: str, *, refusals: Sequence[Refusal] = (), code: str | None = None) -> None:
        """Create an error; the message ends with all refusals, if there are any."""
        super().__init__(f"{message}: {' '.join(map(str, refusals))}" if refusals else message, code=code)
        self.summary, self.refusals = message, tuple(refusals)


class QuotaExceeded(Denied):
    """A quota for a period is used up; requests are allowed again after `retry_after_s` seconds."""

    code = "quota-exceeded"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NotFound(ApplianceError):
    """The thing does not exist, as far as this caller may know."""

    code = "not-found"
    exit_code = 4
    status = 404


class Conflict(ApplianceError):
    """The request is a replay or duplicate, or the thing is in another state."""

    code = "conflict"
    exit_code = 5
    status = 409

    def __init__(self, message: str, *, code: str | None = None, entry: int | None = None) -> None:
        """Create an error; `entry` is the index of the entry by which the requested effect is in the log already."""
        super().__init__(message, code=code)
        self.entry = entry


class Tampered(ApplianceError):
    """Bytes, a signature or the history are invalid."""

    code = "tampered"
    exit_code = 6
    status = 422


class Unavailable(ApplianceError):
    """The machine, the database or the sandbox is not available now; the operation was not begun."""

    code = "unavailable"
    exit_code = 7
    status = 503


class RateLimited(Unavailable):
    """A rate limit was exceeded; retry after `retry_after_s` seconds."""

    code = "rate-limited"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise BadInput if there are problems: a single one is the message, several are its reasons."""
    if len(problems) == 1:
        raise BadInput(problems[0])
    if problems:
        raise BadInput(f"{what}: {len(problems)} problems", reasons=tuple(problems))
