"""Tells people that something waits for them, by a program or a mail server of the site: of what kind, how many, and on
which page. No name of an adapter, a dataset or a run, and no text of anything, is in a notice.

Both are off by default. One thread makes a round each interval: a person gets one notice in it at most, with what is
new to them. A notice that fails is logged, and is tried again in the next round; nothing else waits for it.
"""

from __future__ import annotations

import json
import logging
import smtplib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import partial
from typing import NamedTuple

from appliance.errors import ApplianceError, Unavailable
from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context

log = logging.getLogger("appliance")

MOST_A_ROUND = 500
"""Notices; those of other people follow in the next round."""
MOST_FAILURES = 3
"""One after another: then the round ends, since who carries notices does not work."""
SMTP_S = 10.0
_BREATH_S = 0.02
"""Between two people, so that what is computed for them holds nobody up."""


class Waiting(NamedTuple):
    """One thing that waits. `key` tells it from others, and is never sent."""

    kind: str
    path: str
    key: str


class Item(NamedTuple):
    """`number`: how many of the kind are new; `path`: of the page that lists them."""

    kind: str
    number: int
    path: str


@dataclass(frozen=True)
class Notice:
    """`url`: of the console, or "" where there is none."""

    person: str
    items: tuple[Item, ...]
    url: str

    def encode(self) -> bytes:
        """One line of JSON."""
        items = [item._asdict() for item in self.items]
        return json.dumps({"person": self.person, "items": items, "url": self.url}).encode() + b"\n"

    def message(self, sender: str, recipient: str) -> EmailMessage:
        mail = EmailMessage()
        mail["From"], mail["To"] = sender, recipient
        total = sum(item.number for item in self.items)
        mail["Subject"] = f"Appliance: {total} new {'task' if total == 1 else 'tasks'}"
        lines = [f"{item.kind}: {item.number}  {self.url}{item.path}" for item in self.items]
        mail.set_content("\n".join(["What waits for you in the appliance, and is new:", "", *lines, ""]))
        return mail


Send = Callable[[Notice], None]
"""Raises where the notice was not taken."""


def program_sender(run: Callable[[bytes], None]) -> Send:
    """`run` gives the line to the site's own program."""
    return lambda notice: run(notice.encode())


def mail_sender(server: tuple[str, int], sender: str, to: str) -> Send:
    """`to`: an address with `{person}` in it."""

    def send(notice: Notice) -> None:
        mail = notice.message(sender, to.replace("{person}", notice.person))
        try:
            # With a name given, this host's own is not looked up.
            with smtplib.SMTP(*server, local_hostname="localhost", timeout=SMTP_S) as connection:
                refused = connection.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            raise Unavailable(
                f"mail server {server[0]}:{server[1]}: expected it to take a notice, got {error}"
            ) from None
        if refused:
            raise Unavailable(f"mail server {server[0]}:{server[1]}: expected it to take a notice, got a refusal")

    return send


@dataclass
class Notices:
    """`find`: everybody, and what waits for each now. What was told is kept in memory: after a start everything that
    waits is new."""

    find: Callable[[], Iterable[tuple[str, list[Waiting]]]]
    senders: tuple[Send, ...]
    url: str
    pause: Callable[[], bool] = lambda: False
    """Called between two people; whether the service ends."""
    told: dict[str, frozenset[str]] = field(default_factory=dict)

    def make_round(self) -> int:
        """How many notices were sent."""
        sent = failed = 0
        for person, waiting in self.find():
            if sent >= MOST_A_ROUND or failed >= MOST_FAILURES or self.pause():
                break
            before, keys = self.told.get(person, frozenset()), frozenset(one.key for one in waiting)
            new = [one for one in waiting if one.key not in before]
            if new and not self._send(Notice(person, _count(new), self.url)):
                failed += 1
                # What is over is forgotten all the same: if it comes again, it is new.
                self.told[person] = before & keys
                continue
            sent, failed = sent + bool(new), 0 if new else failed
            self.told[person] = keys
        return sent

    def _send(self, notice: Notice) -> bool:
        """By every way; whether one at least took it."""
        taken = False
        for send in self.senders:
            try:
                send(notice)
                taken = True
            except ApplianceError as error:
                log.warning("a notice to %s was not sent: %s", notice.person, error.message)
        return taken


def _count(new: Iterable[Waiting]) -> tuple[Item, ...]:
    counts = Counter((one.kind, one.path) for one in new)
    return tuple(Item(kind, number, path) for (kind, path), number in counts.items())


def start(context: Context, every_s: float, notices: Notices) -> None:
    notices.pause = partial(context.closing.wait, _BREATH_S)
    rounds.start(context, "notices", every_s, notices.make_round)
