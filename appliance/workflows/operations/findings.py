"""What a diagnosis says: each thing that was looked at, what was found and expected, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """`fail`: the appliance does not start, or does not do its work, while it is so. `warn`: it works, and an
    administrator should look. No text in it is a secret."""

    check: str
    level: Level
    found: str
    expected: str
    action: str = ""

    def value(self) -> dict[str, Any]:
        return asdict(self)


def judge(check: str, holds: bool, found: str, expected: str, action: str, *, otherwise: Level = "fail") -> Finding:
    """ok where it holds; then nothing is to be done."""
    return Finding(check, "ok" if holds else otherwise, found, expected, "" if holds else action)


def verdict(findings: Iterable[Finding]) -> Level:
    levels = {finding.level for finding in findings}
    return "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"


def together(check: str, found: str, expected: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """What is wrong, each by itself; one `ok` where nothing is."""
    bad = [finding for finding in findings if finding.level != "ok"]
    yield from bad or [Finding(check, "ok", found, expected)]
