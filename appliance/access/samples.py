"""One request of each verb, as the appliance sends it: what the schema of a set to be adopted must take, and what test
cases start from."""

from __future__ import annotations

from dataclasses import replace

from appliance.access.request import Moment, Request, Thing, import_thing, pending_thing, principal_thing

_DIGEST = "sha256:" + "00" * 32

ADMINISTRATOR = principal_thing("anna", ("administrator",))
OPERATOR = principal_thing("olga", ("operator",))
REVIEWER = principal_thing("rita", ("reviewer:privacy",))
OWNER = principal_thing("otto", ("release-owner:legal",))
AUDITOR = principal_thing("audrey", ("auditor",))
UNIT = principal_thing("legal", ("unit",))
IMPORTER = principal_thing("ines", ("operator",))
VALIDATOR = principal_thing("vera", ("validator",))

BASE = Thing("Base", "base", {"name": "base", "digest": _DIGEST, "licence": "Apache-2.0", "imported_by": IMPORTER})
DATASET = Thing(
    "Dataset",
    "dataset@1",
    {
        "name": "dataset",
        "version": 1,
        "digest": _DIGEST,
        "licence": "Apache-2.0",
        "classification": "internal",
        "imported_by": IMPORTER,
        "base": BASE,
    },
)
VALIDATION_SET = Thing("ValidationSet", "exam@1", {**DATASET.attributes, "name": "exam", "blind": True, "final": False})
RUN = Thing(
    "Run",
    "r-000001",
    {"adapter": "adapter", "status": "queued", "ordered_by": OPERATOR, "base": BASE, "dataset": DATASET},
)
ADAPTER = Thing(
    "Adapter",
    "adapter@1",
    {
        "name": "adapter",
        "version": 1,
        "manifest": _DIGEST,
        "ordered_by": OPERATOR,
        "base": BASE,
        "dataset": DATASET,
    },
)
POLICY = Thing("Policy", _DIGEST, {"digest": _DIGEST})
PENDING = pending_thing(_DIGEST, "enroll", ADMINISTRATOR)
CLOCK = Thing("Clock", "2027-12-31T00:00:00.000Z", {"last": Moment("2027-12-31T00:00:00.000Z")})
RULES = Thing("Rules", "2", {"from": 1, "to": 2})
IMPORT = import_thing(_DIGEST, "import-base", "base:base", OPERATOR)
LOG_KEY = Thing("LogKey", "bank.example/log+00000000+AQ==", {"vkey": "bank.example/log+00000000+AQ=="})
TEXT = Thing("Text", "hmac-" + _DIGEST, {"signer": "olga", "subjects": ("run:r-000001",)})
HOLD = Thing("Hold", "adapter:adapter@1", {"subject": "adapter:adapter@1"})
NEWCOMER = principal_thing("nina", ())
STANDING_IN = principal_thing("dana", ("reviewer:legal-risk",))

_NOW = {"now": Moment("2026-01-15T09:30:00.000Z"), "single_administrator": False}
_RECIPE = {"method": "qlora", "purpose": "release", "device": "cpu", "rank": 16, "epochs": 3}
_REVIEW = {
    "unit": "legal",
    "field": "privacy",
    "decision": "approve",
    "valid_until": Moment("2026-12-31T00:00:00.000Z"),
}
_REJECTION = {"unit": "legal", "field": "privacy", "decision": "reject"}
_RELEASE = {"unit": "legal", "task": "labels"}
_LATER = Moment("2026-12-31T00:00:00.000Z")
_ASKED = {"unit": "legal", "exposure": "internal", "purpose": "assist", "tier": "low"}
_PASSKEY = {"backup_eligible": False, "rp_id": "appliance.example", "origins": ("https://appliance.example",)}
_FOUND = {"field": "privacy", "kind": "issue", "severity": "high"}
_OWNED = {"accepts_verdict": False, "owner": "olga", "due": _LATER}

SAMPLES: dict[str, Request] = {
    request.verb: request
    for request in (
        Request(ADMINISTRATOR, "enroll", NEWCOMER, {**_NOW, "roles": ("operator",)}),
        Request(ADMINISTRATOR, "grant", REVIEWER, {**_NOW, "role": "reviewer:model-risk"}),
        Request(ADMINISTRATOR, "revoke-principal", REVIEWER, _NOW),
        Request(ADMINISTRATOR, "adopt-policy", POLICY, _NOW),
        Request(principal_thing("ben", ("administrator",)), "endorse", PENDING, _NOW),
        Request(OPERATOR, "import-base", BASE, {**_NOW, "format": "safetensors"}),
        Request(OPERATOR, "import-dataset", DATASET, {**_NOW, "format": "csv"}),
        Request(VALIDATOR, "import-validation-set", VALIDATION_SET, {**_NOW, "format": "csv"}),
        Request(OPERATOR, "train", RUN, {**_NOW, **_RECIPE}),
        Request(REVIEWER, "authorise-run", RUN, _NOW),
        Request(REVIEWER, "refuse-run", RUN, _NOW),
        Request(OPERATOR, "cancel", RUN, _NOW),
        Request(OPERATOR, "cancel-import", IMPORT, _NOW),
        Request(OPERATOR, "resume", RUN, _NOW),
        Request(AUDITOR, "replay", RUN, {**_NOW, "from_step": 0, "to_step": 10}),
        Request(OPERATOR, "request-release", ADAPTER, {**_NOW, **_ASKED}),
        Request(OPERATOR, "withdraw-request", ADAPTER, {**_NOW, "unit": "legal"}),
        Request(REVIEWER, "view-samples", ADAPTER, {**_NOW, "count": 5}),
        Request(REVIEWER, "try-adapter", ADAPTER, {**_NOW, "prompts": 1}),
        Request(REVIEWER, "add-finding", ADAPTER, {**_NOW, **_FOUND, **_OWNED, "blocks": True}),
        Request(REVIEWER, "close-finding", ADAPTER, {**_NOW, **_FOUND, "finder": "rita"}),
        Request(REVIEWER, "delegate", STANDING_IN, {**_NOW, "field": "privacy", "until": _LATER}),
        Request(OWNER, "break-glass", ADAPTER, {**_NOW, **_RELEASE, "until": _LATER}),
        Request(REVIEWER, "review", ADAPTER, {**_NOW, **_REVIEW}),
        Request(OWNER, "activate", ADAPTER, {**_NOW, **_RELEASE, "adds_instruction": False}),
        Request(OWNER, "roll-back", ADAPTER, {**_NOW, **_RELEASE, "adds_instruction": False}),
        Request(REVIEWER, "revoke-adapter", ADAPTER, _NOW),
        Request(
            OWNER, "export-adapter", ADAPTER, {**_NOW, **_RELEASE, "valid_until": Moment("2026-12-31T00:00:00.000Z")}
        ),
        Request(REVIEWER, "revoke-base", BASE, _NOW),
        Request(REVIEWER, "revoke-dataset", DATASET, _NOW),
        Request(VALIDATOR, "revoke-validation-set", VALIDATION_SET, _NOW),
        Request(ADMINISTRATOR, "replace-key", REVIEWER, _NOW),
        Request(REVIEWER, "rotate-key", REVIEWER, _NOW),
        Request(ADMINISTRATOR, "revoke-key", REVIEWER, _NOW),
        Request(ADMINISTRATOR, "enroll-passkey", REVIEWER, {**_NOW, **_PASSKEY}),
        Request(UNIT, "enroll-application", UNIT, {**_NOW, "application": "indexer", "tasks": ("labels",)}),
        Request(ADMINISTRATOR, "revoke-tokens", UNIT, _NOW),
        Request(ADMINISTRATOR, "rotate-log-key", LOG_KEY, _NOW),
        Request(ADMINISTRATOR, "raise-rules", RULES, _NOW),
        Request(ADMINISTRATOR, "reset-clock", CLOCK, _NOW),
        Request(ADMINISTRATOR, "erase", TEXT, _NOW),
        Request(ADMINISTRATOR, "place-hold", HOLD, _NOW),
        Request(ADMINISTRATOR, "lift-hold", HOLD, _NOW),
    )
}

REJECTION = replace(SAMPLES["review"], context={**_NOW, **_REJECTION})
"""A review too, which lacks the date."""
IN_ANOTHERS_PLACE = replace(SAMPLES["review"], context={**_NOW, **_REVIEW, "on_behalf_of": "raul"})
"""A review too, by a delegate."""
FOR_A_TIER = replace(SAMPLES["train"], context={**_NOW, **_RECIPE, "tier": "high"})
"""A run too, that was ordered for a tier."""
END_OF_DELEGATION = replace(SAMPLES["delegate"], context={**_NOW, "field": "privacy"})
"""A delegation's end has no date."""

PROBES = (*SAMPLES.values(), REJECTION, IN_ANOTHERS_PLACE, FOR_A_TIER, END_OF_DELEGATION)
"""Every form of request that a set's schema must take."""
