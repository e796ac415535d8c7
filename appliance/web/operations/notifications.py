"""Notifications to people about pending items, by a program or a mail server of the site.

A notification has the kind and number of the items and the page that lists them. It has no name of an adapter, dataset
or run, and no other text. Both ways are off by default. One thread makes a round per interval, in which a person gets
at most one notification of what is new. A failed notification is logged and repeated in the next round, and does not
delay other work.
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
from appliance.workflows.core import retry
from appliance.workflows.core.context import LedgerContext

log = logging.getLogger("appliance")

MOST_A_ROUND = 500
"""Maximum notifications in a round. Other people get theirs in the next round."""
MOST_FAILURES = 3
"""Consecutive failures after which a round ends: the site's program or server probably does not work."""
SMTP_S = 10.0
"""Seconds before a connection to the mail server times out."""
_PAUSE_S = 0.02
"""Seconds between two people, so that the round does not slow down other work."""


class Waiting(NamedTuple):
    """One pending item. `key` identifies it and is never sent."""

    kind: str
    path: str
    key: str


class PendingCount(NamedTuple):
    """The pending items of one kind: `number` that are new, and `path` of the page that lists them."""

    kind: str
    number: int
    path: str


@dataclass(frozen=True)
class Notification:
    """A notification to one person. `url` is that of the console, or "" without one."""

    person: str
    items: tuple[PendingCount, ...]
    url: str

    def encode(self) -> bytes:
        """Return the notification as one line of JSON."""
        items = [item._asdict() for item in self.items]
        return json.dumps({"person": self.person, "items": items, "url": self.url}).encode() + b"\n"

    def message(self, sender: str, recipient: str) -> EmailMessage:
        """Return the notification as a mail."""
        mail = EmailMessage()
        mail["From"], mail["To"] = sender, recipient
        total = sum(item.number for item in self.items)
        mail["Subject"] = f"Appliance: {total} new {'pending item' if total == 1 else 'pending items'}"
        lines = [f"{item.kind}: {item.number}  {self.url}{item.path}" for item in self.items]
        mail.set_content("\n".join(["What waits for you in the appliance, and is new:", "", *lines, ""]))
        return mail


Send = Callable[[Notification], None]
"""A function that sends a notification, and raises if it was not accepted."""


def program_sender(run: Callable[[bytes], None]) -> Send:
    """Return a sender for the site's own program. `run` gives the line of JSON to it."""
    return lambda notification: run(notification.encode())


def mail_sender(server: tuple[str, int], sender: str, to: str) -> Send:
    """Return a sender for a mail server. `to` is an address that contains `{person}`."""

    def send(notification: Notification) -> None:
        mail = notification.message(sender, to.replace("{person}", notification.person))
        try:
            # With an explicit name, smtplib does not look up this host's own.
            with smtplib.SMTP(*server, local_hostname="localhost", timeout=SMTP_S) as connection:
                refused = connection.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            raise Unavailable(
                f"mail server {server[0]}:{server[1]}: expected it to take a notification, got {error}"
            ) from None
        if refused:
            raise Unavailable(f"mail server {server[0]}:{server[1]}: expected it to take a notification, got a refusal")

    return send


@dataclass
class Notifications:
    """The notifications of a service.

    `find` returns every person with their pending items. `notified` is in memory only, so after a start all pending
    items are new.
    """

    find: Callable[[], Iterable[tuple[str, list[Waiting]]]]
    senders: tuple[Send, ...]
    url: str
    pause: Callable[[], bool] = lambda: False
    """Callback between two people, which returns True if the service ends."""
    notified: dict[str, frozenset[str]] = field(default_factory=dict)
    """Keys of the pending items that each person was notified of."""

    def make_round(self) -> int:
        """Send a notification to each person with new items. Return how many were sent."""
        sent = failed = 0
        for person, waiting in self.find():
            if sent >= MOST_A_ROUND or failed >= MOST_FAILURES or self.pause():
                break
            known, keys = self.notified.get(person, frozenset()), frozenset(item.key for item in waiting)
            new = [item for item in waiting if item.key not in known]
            if new and not self._send(Notification(person, _count(new), self.url)):
                failed += 1
                # Items that are no longer pending are dropped, so that they are new if they return.
                self.notified[person] = known & keys
                continue
            sent, failed = sent + bool(new), 0 if new else failed
            self.notified[person] = keys
        return sent

    def _send(self, notification: Notification) -> bool:
        """Send with every sender. Return True if at least one was accepted."""
        is_sent = False
        for send in self.senders:
            try:
                send(notification)
                is_sent = True
            except ApplianceError as error:
                log.warning("a notification to %s was not sent: %s", notification.person, error.message)
        return is_sent


def _count(new: Iterable[Waiting]) -> tuple[PendingCount, ...]:
    counts = Counter((item.kind, item.path) for item in new)
    return tuple(PendingCount(kind, number, path) for (kind, path), number in counts.items())


def start(context: LedgerContext, every_s: float, notifications: Notifications) -> None:
    """Start the thread that makes a round every `every_s` seconds."""
    notifications.pause = partial(context.closing.wait, _PAUSE_S)
    retry.start(context, "notifications", every_s, notifications.make_round)
