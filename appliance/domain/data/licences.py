"""SPDX licence identifiers, and the checks of a licence and a classification.

`spdx-3.27.0.json` has the SPDX License List 3.27.0 (https://spdx.org/licenses, CC0-1.0), copied on 2026-11-26 from
packaging/licenses/_spdx.py of the Python package packaging 26.3. It includes deprecated identifiers. A later list may
only add identifiers, so that ledger entries recorded under this list remain valid.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from importlib.resources import files

from appliance.domain.core.policy import Parameters
from appliance.domain.core.roles import Reasons
from appliance.errors import RefusalCode, Rejected

SPDX_IDENTIFIERS = frozenset(json.loads(files(__package__).joinpath("spdx-3.27.0.json").read_bytes()))

OWN_LICENCE = "LicenseRef-"
"""SPDX prefix of a licence that is not on the list."""

LICENCE_UNKNOWN = RefusalCode(
    "licence-unknown",
    "policy",
    "{licence} is neither an SPDX identifier nor a licence that policy lists.",
    "Give an SPDX identifier such as Apache-2.0, LicenseRef-NAME, or one of the policy parameter licences.",
)
CLASSIFICATION_UNKNOWN = RefusalCode(
    "classification-unknown",
    "policy",
    "Policy does not list the classification {classification}.",
    "Give one of the policy parameter classifications: {listed}.",
)


def refuse_unknown_licence(parameters: Parameters, licence: str) -> Reasons:
    """Return the refusal reason of a licence that is not known, or none.

    A licence is known if it is an SPDX identifier in its exact spelling, LicenseRef-NAME, or listed by the site's
    policy.
    """
    listed = (*sorted(SPDX_IDENTIFIERS), *parameters.licences)
    if licence in listed or (licence.startswith(OWN_LICENCE) and licence != OWN_LICENCE):
        return []
    return [LICENCE_UNKNOWN(licence=Rejected(f"{licence}{_suggest(licence, listed)}", Rejected(licence).recorded))]


def refuse_unknown_classification(parameters: Parameters, classification: str) -> Reasons:
    """Return the refusal reason of a classification that policy does not list, or none."""
    if classification in parameters.classifications:
        return []
    hint = _suggest(classification, parameters.classifications)
    return [
        CLASSIFICATION_UNKNOWN(
            classification=Rejected(f"{classification}{hint}", Rejected(classification).recorded),
            listed=parameters.classifications,
        )
    ]


def _suggest(typed: str, known: Iterable[str]) -> str:
    """Return a "did you mean" hint, or the empty text where no known word is similar.

    In order of preference: the same word in another case, the shortest word that begins with it, the most similar word.
    """
    by_lower: dict[str, str] = {}
    for word in known:
        by_lower.setdefault(word.lower(), word)
    lower = typed.lower()
    starts = (f"{lower}-", re.sub(r"(?<=[a-z])(?=[0-9])", "-", lower))  # CC0 stands for CC0-1.0, GPL3 for GPL-3.0
    begins = [word for word in sorted(sorted(by_lower, reverse=True), key=len) if word.startswith(starts)]
    near = [lower] if lower in by_lower else begins or difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.7)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""
