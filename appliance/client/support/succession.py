"""A log whose key was rotated, checked from the trust file alone: the entries up to the rotation are verified one by
one, and the key that they lead to is remembered.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from appliance.client.support.door import About, Door
from appliance.client.support.files import read_private, replace_private
from appliance.client.support.log import Anchor, anchor_of
from appliance.client.support.session import state_folder
from appliance.domain.audit.verify import Audit
from appliance.errors import ApplianceError, Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.export import Export
from appliance.formats.log.trust import Trust, encode_trust

_MAX_VKEY_BYTES = 1_024


def follow(door: Door, about: About, trust: Trust) -> Anchor:
    """The anchor of a service whose log key is not the trust file's. While the trust file's key also signs, it is used
    as before. Afterwards the whole log is verified once; then no session is needed.
    """
    anchor = anchor_of(replace(about, log_key=trust.log_key), trust)
    kept = state_folder() / "logs" / f"{hashlib.sha256(encode_trust(trust)).hexdigest()[:32]}.vkey"
    if _load(kept) != about.log_key:
        if _signs_still(door, trust.log_key):
            return anchor
        _verify(door, about, trust)
        replace_private(kept, about.log_key.encode("utf-8"), "log key")
    return replace(anchor, log_key=about.log_key, said_by="the trust file, and the log verified from it to today's key")


def _signs_still(door: Door, log_key: str) -> bool:
    try:
        open_checkpoint(str(door.get("/v1/ledger/0")["checkpoint"]).encode("utf-8"), log_key)
    except Tampered:
        return False
    return True


def _load(path: Path) -> str | None:
    try:
        return read_private(path, "log key", _MAX_VKEY_BYTES).decode("utf-8", "replace")
    except ApplianceError:
        return None


def _verify(door: Door, about: About, trust: Trust) -> None:
    """Replays the whole log under the trust file; Tampered unless its last key is the one that the service says."""
    with tempfile.TemporaryFile() as stream:
        for chunk in door.stream("/v1/ledger/export"):
            stream.write(chunk)
        stream.seek(0)
        with Export(stream) as export:
            audit = Audit(export.document, export.disclosures(), export.checkpoint, trust)
            for data in export.entries():
                audit.take(data)
            report = audit.report(encode_time(datetime.now(UTC)))
            got = audit.state.site.log_key if report.verdict == "verified" else f"a log that is {report.verdict}"
            if export.disorder is not None:
                got = f"an export out of order ({export.disorder})"
    if got != about.log_key:
        raise Tampered(
            f"trust file, log key: expected {trust.log_key}, or a verified log that rotates to {about.log_key}, "
            f"got {got}",
            code="trust",
        )
