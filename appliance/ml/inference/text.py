"""From tokens to text that can be sent: whole characters, and nothing that may begin a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "�"


class Text:
    """Turns tokens into text that can be sent: whole characters, and nothing that may begin a stop text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._text = ""
        self._sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token lets go."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        if places:
            self.stopped = True
            self._text = self._text[: min(places)]
            return self._release(len(self._text))
        return self._release(len(self._text) - self._held())

    def finish(self) -> str:
        """What was held back, once no token follows."""
        return self._release(len(self._text))

    def _release(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _held(self) -> int:
        """How many last characters may still change: an unfinished character, and the beginning of a stop text, which
        may go on with it."""
        whole = self._text.rstrip(_INCOMPLETE)
        begun = max((_begun(whole, stop) for stop in self._stop), default=0)
        return len(self._text) - len(whole) + begun


def _begun(text: str, stop: str) -> int:
    """How many last characters of the text are the first ones of the stop text, but not all of it."""
    for start in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[start:]):
            return len(text) - start
    return 0
