"""The parts of the review page that a reviewer opens before an approval, each with a digest of what it said."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.core.decisions import PARTS, Opened, Part
from appliance.domain.releases.page.value import ReviewPage
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes

MEMBERS: dict[Part, tuple[str, ...]] = {
    "changes": ("changes",),
    "findings": ("findings",),
    "quality": ("calibration", "confusion", "judged", "measures"),
}
"""Which members of the page each part shows."""


def open_parts(page: ReviewPage, parts: Iterable[Part] = PARTS) -> tuple[Opened, ...]:
    """These parts as they are now, by name."""
    return tuple(Opened(part=part, digest=digest_part(page, part)) for part in sorted(parts))


def digest_part(page: ReviewPage, part: Part) -> str:
    """SHA-256 of the canonical JSON of its members alone."""
    return digest_bytes(encode_canonical(page.model_dump(mode="json", include=set(MEMBERS[part]))))
