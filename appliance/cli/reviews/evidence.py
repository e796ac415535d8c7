"""What a signature would bind, gathered and printed: the review page, and which log it was checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.cli.reviews.page import PagePrinter
from appliance.cli.support.caller import Caller
from appliance.cli.support.progress import Meter

if TYPE_CHECKING:
    from appliance.client.releases.evidence import ReviewMaterial


def gather(caller: Caller, name: str) -> ReviewMaterial:
    """Downloads, hashes and checks an adapter, with a meter."""
    from appliance.client.releases.evidence import gather as gather_evidence

    door, meter = caller.reading(), Meter(f"hashes {name}", 0, "bytes")

    def advance(count: int) -> None:
        meter.total += count
        meter.advance(count)

    evidence = gather_evidence(door, caller.anchor, name, advance)
    meter.close()
    return evidence


def print_evidence(evidence: ReviewMaterial, *, err: bool = False) -> None:
    """The page as text."""
    log = f"{evidence.log_size} entries, vouched for by {evidence.said_by}"
    PagePrinter(evidence.page, err=err).print([("  log", log)])


def evidence_value(evidence: ReviewMaterial) -> dict[str, Any]:
    """The page as JSON, and the log that it was checked against."""
    page = evidence.page.model_dump(mode="json")
    return {**page, "log_size": evidence.log_size, "log_vouched_for_by": evidence.said_by}
