"""The names of Cedar policies in the text of a policy set.

It imports nothing of the domain, because the process that reads untrusted Cedar text (`appliance/access/program.py`)
imports this module and starts for each policy set that is checked.
"""

from __future__ import annotations

import re

POLICY_ID = re.compile(r'^[ \t]*@id\("([^"\n]*)"\)', re.MULTILINE)
"""Pattern of a policy's `@id` annotation at the start of a line."""


def list_policy_ids(cedar: str) -> list[str]:
    """Return the `@id` at the start of each policy's text, in order. The text of an adopted set has no other policy."""
    return POLICY_ID.findall(cedar)
