"""Records of the site and the whole log: its keys, witnesses, legal holds and texts."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from pydantic import SerializerFunctionWrapHandler, model_serializer

from appliance.domain.core.names import RecordClass, Time, Value
from appliance.domain.core.policy import Parameters
from appliance.formats.log.note import is_post_quantum

MOST_VKEY_CHARACTERS = 3_000
"""Largest length of a log's vkey. One of ML-DSA-65 has 2,671 characters beside the origin."""


class CommittedText(NamedTuple):
    """A text behind a commitment: the entry that binds it, its signer, and the subjects of that entry.

    It is a tuple to save memory, since each order has one.
    """

    entry: int
    time: Time
    signer: str
    subjects: tuple[str, ...]
    erased: int | None = None


class Hold(Value):
    """A legal hold: texts of entries about the subject cannot be erased, and such records cannot be archived."""

    subject: str
    order: str
    signer: str
    index: int


class WitnessRecord(Value):
    """The largest size of the log that a witness has cosigned, and the time of the cosignature."""

    name: str
    vkey: str
    size: int
    time: Time
    index: int


class Archive(Value):
    """An archive: the entry `index` removed `count` earlier entries, which the file with the digest `archive` has.

    `removed` is the digest of the list of these entries. Each is before `up_to` and of one of the classes `records`.
    `signers` are the administrators who ordered it.
    """

    index: int
    up_to: int
    records: tuple[RecordClass, ...]
    count: int
    removed: str
    archive: str
    signers: tuple[str, ...]
    time: Time


class LogKey(Value):
    """A key that signs the log's checkpoints from the entry `since` on, and once replaced until a time."""

    vkey: str
    since: int
    until: Time | None = None


class AdapterKey(Value):
    """A key that signs the adapters which are sealed after the entry `since`, as base64 of its SPKI."""

    key: str
    since: int


class ClockResetRecord(Value):
    """A reset of the clock: the entry `index` set the log's time from `reached` back to `time`."""

    index: int
    reached: Time
    time: Time


class Restoration(Value):
    """A restoration: the entry `index` gave up entries that others may have seen (`governance/restoration.py`).

    The log keeps its first `kept_size` entries. `lost_size` and `lost_root` are those of the newest checkpoint that is
    given up. `ordered_at` is the time of the first administrator's order, `time` that of the entry.
    """

    index: int
    time: Time
    ordered_at: Time
    signers: tuple[str, ...]
    kept_size: int
    kept_root: str
    lost_size: int
    lost_root: str


class Site(Value):
    """The site's single row: values of the log's first entry and of the valid policy set."""

    origin: str
    log_keys: tuple[LogKey, ...]
    adapter_key: str
    post_quantum_adapter_key: AdapterKey | None = None
    single_administrator: bool
    policy: str
    parameters: Parameters
    rules: int = 1
    """The version of the rules by which new entries are evaluated."""
    resets: tuple[ClockResetRecord, ...] = ()
    restorations: tuple[Restoration, ...] = ()

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `resets` and `restorations` if there are none."""
        value: dict[str, Any] = encode(self)
        return {k: v for k, v in value.items() if v or k not in ("resets", "restorations")}

    def time_for(self, index: int, now: Time) -> Time:
        """Return the time to compare with a date that the entry of this index recorded.

        If the clock was set back since, it is at least the time that the clock had reached, so that expired things stay
        expired.
        """
        return max([now, *(reset.reached for reset in self.resets if index < reset.index)])

    def happened_by(self, index: int, time: Time) -> Time:
        """Return the latest time at which the entry of this index, which has that time, can have been recorded.

        An entry from before a reset of the clock was recorded before the time of the reset.
        """
        return min([time, *(reset.time for reset in self.resets if index < reset.index)])

    @property
    def log_key(self) -> str:
        """Return the present vkey, by which witnesses and other logs' clients identify the log; it is not ML-DSA-65."""
        return self.checkpoint_keys()[-1]

    @property
    def post_quantum_log_key(self) -> str | None:
        """Return the present vkey of ML-DSA-65, or None."""
        return next((vkey for vkey in self.checkpoint_keys() if is_post_quantum(vkey)), None)

    def checkpoint_keys(self, size: int | None = None) -> tuple[str, ...]:
        """Return the vkeys without whose signatures a checkpoint of this size is invalid; by default, a present one.

        They are the newest key of ML-DSA-65, if there is one, and the newest other key, which is the last.
        """
        newest = {is_post_quantum(key.vkey): key.vkey for key in self.log_keys if size is None or key.since < size}
        return tuple(newest[kind] for kind in (True, False) if kind in newest)

    def signing_keys(self, now: Time) -> tuple[str, ...]:
        """Return every vkey that must sign a checkpoint at this time: those of ML-DSA-65, then the others.

        The present key is the last.
        """
        keys = [key.vkey for key in self.log_keys if key.until is None or now < key.until]
        return tuple(sorted(keys, key=is_post_quantum, reverse=True))

    def adapter_keys(self, index: int) -> tuple[bytes, ...]:
        """Return the SPKIs whose signatures an adapter needs that was sealed by the entry of this index."""
        second = self.post_quantum_adapter_key
        keys = [self.adapter_key, *([second.key] if second is not None and second.since < index else [])]
        return tuple(map(base64.b64decode, keys))
