"""Filled forms of orders, kept in memory until they are signed, so that a refusal and an ended session lose no text.

A form is posted, and the browser is sent on to the address of its draft. Pages can be loaded again and left by *Back*
without sending a form twice. Only the person who filled a form in can read its draft. Nothing of it is stored: after a
restart the forms are empty again.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic

from appliance.errors import NotFound
from appliance.web.console.core.why import Explained

MOST = 256
"""Maximum number of drafts. Each has at most as many bytes as a form."""
MOST_OF_ONE = 32
"""Maximum number of drafts of one person. The oldest is dropped."""
KEPT_S = 28_800.0
"""Seconds for which a draft is kept after it was last opened: a working day."""


@dataclass(frozen=True)
class FormDraft:
    """A filled form.

    `back` is the page to which the browser returns after the signature, or "" for that of what the order did. `check`
    is the key of the check of an import's files. `refused` says why the signed order was refused. `entry` is the entry
    of the signed order, after which the form's texts are dropped.
    """

    key: str
    owner: str
    action: str
    fields: Mapping[str, str]
    back: str = ""
    check: str = ""
    refused: Explained | None = None
    entry: int | None = None


class Drafts:
    """The drafts of all people, by their keys."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._found: OrderedDict[str, tuple[float, FormDraft]] = OrderedDict()

    def keep(self, owner: str, action: str, fields: Mapping[str, str], back: str = "") -> FormDraft:
        """Keep a person's form and return its draft."""
        draft = FormDraft(secrets.token_urlsafe(16), owner, action, dict(fields), back)
        with self._lock:
            own = [key for key, (_, one) in self._found.items() if one.owner == owner]
            for key in own[: len(own) - MOST_OF_ONE + 1]:
                del self._found[key]
            self._put(draft)
            while len(self._found) > MOST:
                self._found.popitem(last=False)
        return draft

    def find(self, owner: str, action: str, key: str) -> FormDraft:
        """Return a person's draft.

        Raises: NotFound for a draft of another person or action, and for one that is no longer kept.
        """
        with self._lock:
            self._drop_old()
            found = self._found.get(key)
            if found is None or (found[1].owner, found[1].action) != (owner, action):
                raise NotFound(
                    f"This form is no longer kept. A filled form is kept for {KEPT_S / 3_600:.0f} hours, or until the "
                    "service restarts. Fill it in again."
                )
            self._put(found[1])
            return found[1]

    def change(self, draft: FormDraft, *, check: str = "", refused: Explained | None = None) -> FormDraft:
        """Note the check of a draft's files, or why its signed order was refused."""
        changed = replace(draft, check=check or draft.check, refused=refused)
        with self._lock:
            self._put(changed)
        return changed

    def finish(self, draft: FormDraft, entry: int) -> None:
        """Note the entry of the signed order and drop the texts of the form."""
        with self._lock:
            self._put(replace(draft, fields={}, refused=None, entry=entry))

    def _put(self, draft: FormDraft) -> None:
        self._found[draft.key] = self._clock(), draft
        self._found.move_to_end(draft.key)

    def _drop_old(self) -> None:
        """Drop the drafts that were not opened for a while. They are the first, since each use moves one to the end."""
        oldest = self._clock() - KEPT_S
        while self._found and next(iter(self._found.values()))[0] < oldest:
            self._found.popitem(last=False)
