"""Every error the appliance raises on purpose.

One root, few branches, by who must act. Each class has a stable `code` (for programs), an `exit_code` (for shells)
and an HTTP `status`. A message reads "what, which: expected X, got Y".

    ApplianceError
    ├── BadInput          2 / 400   the caller's bytes or words are wrong
    │   └── TooLarge      2 / 413   the input is over a stated limit
    ├── NotAuthenticated  3 / 401   no key, session or token that holds
    ├── Denied            3 / 403   known, and not allowed: carries every reason
    │   └── UsedUp        3 / 429   allowed again later: a day's answers are used up
    ├── NotFound          4 / 404   no such thing, for this caller
    ├── Conflict          5 / 409   true once, or already: replay, duplicate, wrong state
    ├── Tampered          6 / 422   bytes, signature or history do not hold
    └── Unavailable       7 / 503   the machine, database or a wall is not there now
        └── TooMany       7 / 429   ask again later
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self


class ApplianceError(Exception):
    """The root: whatever is not below it is a defect."""

    code = "error"
    exit_code = 1
    status = 500
    claimed: tuple[str, str] | None = None
    """By whom an attempt said it was, and under which key id, where it has no entry of its own: it is counted."""

    def __init__(self, message: str, *, reasons: tuple[str, ...] = (), code: str | None = None) -> None:
        """`reasons`: every reason by itself, where there can be several; the message ends with all of them."""
        told = message if not reasons else f"{message}: {'; '.join(reasons)}"
        super().__init__(told)
        self.message = told
        self.reasons = reasons
        if code is not None:
            self.code = code

    def within(self, where: str) -> Self:
        """The same error, which says first where it was found."""
        found = copy.copy(self)
        found.message = f"{where}: {self.message}"
        found.args = (found.message,)
        return found


class BadInput(ApplianceError):
    """The caller's bytes or words are wrong; asking again unchanged is useless."""

    code = "bad-input"
    exit_code = 2
    status = 400


class TooLarge(BadInput):
    """The input is over a limit that the message names."""

    code = "too-large"
    status = 413


class NotAuthenticated(ApplianceError):
    """No key, session or token that holds here and now."""

    code = "not-authenticated"
    exit_code = 3
    status = 401


class Denied(ApplianceError):
    """The caller is known and may not; `reasons` names every rule that stands against it."""

    code = "denied"
    exit_code = 3
    status = 403


class UsedUp(Denied):
    """What was allowed for a time is used up; another request is allowed after it."""

    code = "used-up"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NotFound(ApplianceError):
    """No such thing, as far as this caller may know."""

    code = "not-found"
    exit_code = 4
    status = 404


class Conflict(ApplianceError):
    """The request was true once, or the thing is in another state."""

    code = "conflict"
    exit_code = 5
    status = 409


class Tampered(ApplianceError):
    """Bytes, a signature or the history do not hold."""

    code = "tampered"
    exit_code = 6
    status = 422


class Unavailable(ApplianceError):
    """The machine, the database or a wall is not there now; nothing was begun."""

    code = "unavailable"
    exit_code = 7
    status = 503


class TooMany(Unavailable):
    """A limit on the rate; ask again later."""

    code = "too-many"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


def refuse(what: str, problems: Sequence[str]) -> None:
    """BadInput where there are problems: one speaks for itself, several are its reasons."""
    if len(problems) == 1:
        raise BadInput(problems[0])
    if problems:
        raise BadInput(f"{what}: {len(problems)} problems", reasons=tuple(problems))
