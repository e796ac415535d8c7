"""Which characters a person sees. The others can turn the direction of a text, hide a part of it, or make two texts
look the same (Unicode's Default_Ignorable_Code_Point, beside what is not printable)."""

from __future__ import annotations

import re

IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_visible(text: str) -> bool:
    """Whether every character has a shape, or is a space."""
    return text.isprintable() and IGNORABLE.search(text) is None
