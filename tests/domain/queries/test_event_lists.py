"""Each type of entry is in the lists of types for people, or is left out for a stated reason."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from appliance.domain.actions.registry import EVENTS
from appliance.domain.queries.rows import COUNTED_OF_ADAPTERS, LISTED_OF_ADAPTERS
from appliance.domain.queries.unit_reading import APPROVAL_CHAIN, GOVERNANCE

HISTORY = (*LISTED_OF_ADAPTERS, *COUNTED_OF_ADAPTERS)
NOT_IN_HISTORY = {
    "it is about a run, and the history finds all entries of the adapter's run by the run's name": (
        *("run.requested", "run.authorised", "run.refused", "run.started", "run.checkpointed", "run.resumed"),
        *("run.finished", "run.failed", "run.cancelled", "resume.requested"),
        *("replay.requested", "replay.finished", "replay.failed"),
    ),
    "it is the import of the adapter's base or dataset, which the history finds by its entry": (
        *("import.requested", "base.imported", "dataset.imported"),
    ),
    "the import produced nothing that an adapter could use": ("import.failed", "import.cancelled"),
    "it is about a base, dataset or set of many adapters, and the page of that one shows it": (
        *("base.quarantined", "base.revoked", "dataset.revoked", "validation-set.imported", "validation-set.revoked"),
    ),
    "the order had no effect on the adapter": ("order.refused", "order.withdrawn"),
    "a unit's request that was refused is counted for the unit": ("request.refused",),
    "it is about the service, its policy or its log": (
        *("appliance.initialized", "artifacts.checked", "checkpoint.cosigned", "clock.reset", "heartbeat"),
        *("log-key.rotated", "log.archived", "log.restored", "policy.adopted", "post-quantum-keys.added"),
        *("process.lost", "rules.raised", "service.started", "service.stopped"),
        *("hold.placed", "hold.lifted", "text.erased"),
    ),
    "it is about people, their keys and sessions": (
        *("principal.enrolled", "principal.enrolled-with-passkey", "principals.enrolled"),
        *("principal.granted", "principal.role-removed"),
        *("principal.revoked", "principal.invited", "invitation.accepted", "invitation.withdrawn"),
        *("key.enrolled", "key.revoked"),
        *("administrator.recovered", "identity.bound", "identity.unbound"),
        *("passkey.enrolled", "session.opened", "session.closed", "auth.refused", "review.delegated"),
    ),
    "it is about a unit's applications and tokens": ("application.enrolled", "token.issued", "tokens.revoked"),
}
"""Types that the history of an adapter does not find by the adapter's name, by the reason."""

READ_BY_UNITS = (*GOVERNANCE, *APPROVAL_CHAIN)
OWN_ONLY = {
    "it is about one unit's use of its adapters, applications and tokens": (
        *("adapter.admitted", "adapter.exported", "adapter.loaded", "adapter.unloaded", "admission.refused"),
        *("request.admitted", "request.finished", "request.refused"),
        *("application.enrolled", "token.issued", "tokens.revoked"),
    ),
    "it is about one signer's session or order": (
        *("session.opened", "session.closed", "order.pending", "order.refused", "order.withdrawn"),
    ),
    "it names people and keys whose requests were refused": ("auth.refused",),
    "it names a person's account at the identity provider": ("identity.bound", "identity.unbound"),
    "it names a person who is not enrolled yet": (
        *("principal.invited", "invitation.accepted", "invitation.withdrawn"),
    ),
    "it names folders, entries or texts of all units": (
        *("artifacts.checked", "hold.placed", "hold.lifted", "log.archived", "text.erased"),
    ),
    "it approved and changed nothing of an adapter that was sealed": (
        *("import.failed", "import.cancelled", "run.failed", "run.cancelled", "run.refused", "resume.requested"),
        *("replay.requested", "replay.finished", "replay.failed"),
    ),
    "it is a reviewer's own view of samples or answers": (
        *("samples.requested", "samples.shown", "try.requested", "try.finished"),
    ),
}
"""Types of which a unit reads only the entries that name it, by the reason."""


@pytest.mark.parametrize(
    ("listed", "left_out"),
    [(HISTORY, NOT_IN_HISTORY), (READ_BY_UNITS, OWN_ONLY)],
    ids=["history of an adapter", "log that a unit reads"],
)
def test_each_type_is_listed_or_left_out_for_a_reason(
    listed: tuple[str, ...], left_out: Mapping[str, tuple[str, ...]]
) -> None:
    decided = sorted([*listed, *(name for names in left_out.values() for name in names)])
    assert decided == sorted(EVENTS), "decide once for each type"
