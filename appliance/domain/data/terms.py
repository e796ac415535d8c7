"""The words of an import that are for ever: its licence and its classification."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from appliance.domain.core.policy import Parameters
from appliance.domain.core.roles import Reasons
from appliance.domain.data.spdx import SPDX_IDENTIFIERS

OWN_LICENCE = "LicenseRef-"
"""SPDX's own prefix for a licence that it does not list."""


def licence_is_known(parameters: Parameters, licence: str) -> Reasons:
    """An SPDX identifier in its own spelling, LicenseRef-NAME, or a word that the site's policy lists."""
    listed = (*sorted(SPDX_IDENTIFIERS), *parameters.licences)
    if licence in listed or (licence.startswith(OWN_LICENCE) and licence != OWN_LICENCE):
        return []
    return [
        f"licence: expected an SPDX identifier such as Apache-2.0, LicenseRef-NAME, or one that policy lists "
        f"(licences), got {licence}{_suggest(licence, listed)}"
    ]


def classification_is_known(parameters: Parameters, classification: str) -> Reasons:
    if classification in parameters.classifications:
        return []
    known = ", ".join(parameters.classifications)
    hint = _suggest(classification, parameters.classifications)
    return [f"classification: expected one that policy lists (classifications: {known}), got {classification}{hint}"]


def _suggest(typed: str, known: Iterable[str]) -> str:
    """The word that was meant, as far as one can tell: the same but for its case, one that begins so, a near one."""
    by_lower: dict[str, str] = {}
    for word in known:
        by_lower.setdefault(word.lower(), word)
    lower = typed.lower()
    starts = (f"{lower}-", re.sub(r"(?<=[a-z])(?=[0-9])", "-", lower))  # CC0 and GPL3 mean CC0-1.0 and GPL-3.0
    begins = [word for word in sorted(sorted(by_lower, reverse=True), key=len) if word.startswith(starts)]
    near = [lower] if lower in by_lower else begins or difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.7)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
