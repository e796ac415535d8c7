"""The names of Cedar policies in the text of a policy set.

This module imports only the standard library. The process that reads untrusted Cedar text
(`appliance/access/program.py`) imports it and starts once for each policy set, so the start must be fast.
"""

from __future__ import annotations

import re

POLICY_ID = re.compile(r'^[ \t]*@id\("([^"\n]*)"\)', re.MULTILINE)
"""Pattern of a policy's `@id` annotation at the start of a line."""


def list_policy_ids(cedar: str) -> list[str]:
    """Return the `@id` of each policy in the text, in order. In an adopted set every policy has one."""
    return POLICY_ID.findall(cedar)
