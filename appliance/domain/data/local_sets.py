"""Names of sets of rows that are in no log: those that come with the appliance, and tasks and metrics of the site's own
in the appliance's home. An order binds such a set by its digest; no validation set has such a name.
"""

from __future__ import annotations

GENERAL, REFUSAL = "general", "refusal"
SHIPPED = (GENERAL, REFUSAL)
HARNESS, METRIC = "harness-", "metric-"
"""What comes before the name of a task of lm-eval, or of a metric of evaluate."""


def is_local(name: str) -> bool:
    return name in SHIPPED or name.startswith((HARNESS, METRIC))
