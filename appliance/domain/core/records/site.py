"""What there is one of, and what lies over the whole log: its keys, witnesses, holds and texts."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import SerializerFunctionWrapHandler, model_serializer

from appliance.domain.core.names import Time, Value
from appliance.domain.core.policy import Parameters


class Text(NamedTuple):
    """A text behind a commitment: the entry that binds it, who signed it, and what that entry is about. As small as it
    can be: there is one for each order."""

    entry: int
    time: Time
    signer: str
    subjects: tuple[str, ...]
    erased: int | None = None


class Hold(Value):
    """A legal hold: no text of an entry about the subject is erased."""

    subject: str
    order: str
    signer: str
    index: int


class Witness(Value):
    """The largest log that a witness has cosigned, and when it did."""

    name: str
    vkey: str
    size: int
    time: Time
    index: int


class LogKey(Value):
    """A key that signs the log's checkpoints: from the entry `since` on; once replaced, until a time."""

    vkey: str
    since: int
    until: Time | None = None


class ClockReset(Value):
    """The entry `index` set the log's time back to `time`, after the clock had run ahead to `reached`."""

    index: int
    reached: Time
    time: Time


class Site(Value):
    """What there is one of: from the first entry and the policy in force."""

    origin: str
    log_keys: tuple[LogKey, ...]
    adapter_key: str
    single_administrator: bool
    policy: str
    parameters: Parameters
    rules: int = 1
    """The version of the rules that entries are judged by."""
    resets: tuple[ClockReset, ...] = ()

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `resets` where there is none."""
        value: dict[str, Any] = encode(self)
        return value if self.resets else {k: v for k, v in value.items() if k != "resets"}

    def time_for(self, index: int, now: Time) -> Time:
        """The time that a date is held against which the entry of this index recorded: where the clock was set back
        since, not before the time that it had run ahead to, so that nothing revives that had lapsed by then."""
        return max([now, *(reset.reached for reset in self.resets if index < reset.index)])

    def happened_by(self, index: int, time: Time) -> Time:
        """By when the entry of this index, which has that time, was recorded: before a reset of the clock since."""
        return min([time, *(reset.time for reset in self.resets if index < reset.index)])

    @property
    def log_key(self) -> str:
        """The vkey that signs today."""
        return self.log_keys[-1].vkey

    def signing_keys(self, now: Time) -> tuple[str, ...]:
        """Every vkey that a checkpoint carries a signature of at this time; today's last."""
        return tuple(key.vkey for key in self.log_keys if key.until is None or now < key.until)
