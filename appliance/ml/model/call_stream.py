"""An answer, piece by piece, as text and calls: nothing is sent as text that may still become a call. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from appliance.domain.data.tool_calls import MAX_CALLS
from appliance.ml.model.calls import Call, CallForm


@dataclass(frozen=True)
class Called:
    """A piece of an answer that is no text to show: `text` as the model wrote it, and the calls that it is, if any."""

    text: str
    calls: tuple[Call, ...]


class CallStream:
    """`names`: the tools that may be called; a call of another one is text. `most`: how many calls an answer has."""

    def __init__(self, form: CallForm, names: Collection[str], most: int = MAX_CALLS) -> None:
        self._form, self._names, self._most = form, names, most
        self._held = ""
        self._begun = False
        self.calls = 0

    @property
    def full(self) -> bool:
        """Whether the answer has all the calls that it may have."""
        return self.calls >= self._most

    def push(self, piece: str) -> list[str | Called]:
        """What this piece lets go."""
        self._held += piece
        return self._take(last=False)

    def finish(self) -> list[str | Called]:
        """What was held back, once no piece follows."""
        told = self._take(last=True)
        if self._held:
            # White space behind the last call is no text of the answer.
            told.append(Called(self._held, ()) if self.calls else self._held)
        self._held = ""
        return told

    def _take(self, *, last: bool) -> list[str | Called]:
        told: list[str | Called] = []
        while self._held and not self.full:
            start = self._form.find(self._held, begun=self._begun)
            if start is None:
                told += self._say(len(self._held.rstrip()) if last else self._free())
                break
            told += self._say(len(self._held[:start].rstrip()))
            blank = len(self._held) - len(self._held.lstrip())
            found = self._form.read(self._held[blank:], last=last)
            if found is None:
                break
            calls = found.calls
            if calls is None or not all(call.name in self._names for call in calls):
                told += self._say(blank + found.end)
                continue
            calls = calls[: self._most - self.calls]
            self.calls += len(calls)
            self._begun = True
            told.append(Called(self._held[: blank + found.end], calls))
            self._held = self._held[blank + found.end :]
        return told

    def _say(self, length: int) -> list[str | Called]:
        """The first characters of what is held, as text."""
        text, self._held = self._held[:length], self._held[length:]
        self._begun = self._begun or bool(text.strip())
        return [text] if text else []

    def _free(self) -> int:
        """How many first characters can be no part of a call: white space before a call belongs to it."""
        marker = self._form.marker or ("" if self._begun else "<|python_tag|>")
        text = self._held
        for length in range(min(len(marker) - 1, len(text)), 0, -1):
            if text.endswith(marker[:length]):
                text = text[:-length]
                break
        return len(text.rstrip())
