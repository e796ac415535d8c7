"""The bill of materials of a wheelhouse as CycloneDX 1.7 with its VEX statements, and the licences of its wheels.

Standard library only.
"""

from __future__ import annotations

import email
import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from scripts.packaging.install import Refused, normalise

_NAMESPACE = uuid.UUID("8b0e7c52-9f0e-5c3b-9b9f-0f4d1d1c6a51")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


STATEMENTS = Path(__file__).resolve().parent / "vex.json"
"""The reviewed statements."""
STATES = ("not_affected", "false_positive", "exploitable", "in_triage")
"""Results of a review, as CycloneDX names them. A fixed version needs no statement."""
JUSTIFICATIONS = (
    *("code_not_present", "code_not_reachable", "requires_configuration", "requires_dependency"),
    *("requires_environment", "protected_by_compiler", "protected_at_runtime", "protected_at_perimeter"),
    "protected_by_mitigating_control",
)
"""Reasons for `not_affected`, as CycloneDX names them."""
_VULNERABILITY = re.compile(r"(CVE-[0-9]{4}-[0-9]{4,}|GHSA(-[0-9a-z]{4}){3}|PYSEC-[0-9]{4}-[0-9]+)")
_LEAST_DETAIL = 40


class Statement(NamedTuple):
    """The effect of a published vulnerability of one version of a library on the appliance (VEX).

    `reviewed`: the day of the review. `detail`: the reason in sentences.
    """

    vulnerability: str
    component: str
    version: str
    state: str
    justification: str | None
    detail: str
    reviewed: str


def read_statements(path: Path = STATEMENTS) -> list[Statement]:
    """Return the reviewed statements, each checked.

    Raises:
        Refused: One is not complete.
    """
    found = []
    for number, values in enumerate(json.loads(path.read_text(encoding="utf-8"))["statements"]):
        try:
            one = Statement(**{"justification": None, **values})
            reviewed = date.fromisoformat(one.reviewed)
        except (TypeError, ValueError) as error:
            raise Refused(
                6, f"{path.name}, statement {number}: expected {', '.join(Statement._fields)}: {error}"
            ) from None
        problems = (
            (not _VULNERABILITY.fullmatch(one.vulnerability), f"a CVE, GHSA or PYSEC number, got {one.vulnerability}"),
            (one.state not in STATES, f"a state of {', '.join(STATES)}, got {one.state}"),
            (
                (one.justification in JUSTIFICATIONS) != (one.state == "not_affected"),
                f"one of {', '.join(JUSTIFICATIONS)} for not_affected alone, got {one.justification}",
            ),
            (len(one.detail) < _LEAST_DETAIL, "the reason in sentences"),
            (reviewed > date.today(), f"a day in the past, got {one.reviewed}"),
        )
        for is_problem, expected in problems:
            if is_problem:
                raise Refused(6, f"{path.name}, {one.vulnerability}: expected {expected}")
        found.append(one)
    return found


def find_stale(statements: Iterable[Statement], versions: Mapping[str, set[str]]) -> list[str]:
    """Return the statements about versions of components that are not among these, by component."""
    return [
        f"{one.vulnerability}: {one.component} {one.version} is not in the locks; review it for the version there, or "
        "remove the statement"
        for one in statements
        if one.version not in versions.get(normalise(one.component), set())
    ]


def read_metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one))
        return email.message_from_bytes(archive.read(name))


def read_licences(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the licence files of a wheel, by a name of their own."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder, _, rest = name.partition(".dist-info/")
            words = rest.lower()
            if "/" not in folder and rest and not name.endswith("/") and re.search("licen[cs]e|notice|copying", words):
                yield re.sub(r"[^A-Za-z0-9._-]+", "_", f"{folder}-{rest.removeprefix('licenses/')}"), archive.read(name)


def make_sbom(
    wheels: Path, versions: Mapping[str, str], time: str, statements: Iterable[Statement] = ()
) -> dict[str, Any]:
    """Return the bill of materials, with the statements about components in it. The same wheels give the same
    document.
    """
    described = {normalise(path.name.partition("-")[0]): path for path in sorted(wheels.glob("*.whl"))}
    messages = {name: read_metadata(path) for name, path in described.items()}
    components = [_component(name, messages[name], described[name], versions[name]) for name in sorted(described)]
    (root,) = (one for one in components if one["name"] == "appliance")
    digests = "".join(one["hashes"][0]["content"] for one in components)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digests)}",
        "version": 1,
        "metadata": {"timestamp": time, "component": {**root, "type": "application"}},
        "components": [one for one in components if one is not root],
        "dependencies": [
            {"ref": _purl(name, versions[name]), "dependsOn": sorted(_needs(messages[name], versions))}
            for name in sorted(described)
        ],
        "vulnerabilities": [
            _vulnerability(one) for one in statements if versions.get(normalise(one.component)) == one.version
        ],
    }


def _vulnerability(one: Statement) -> dict[str, Any]:
    justification = {} if one.justification is None else {"justification": one.justification}
    return {
        "id": one.vulnerability,
        "analysis": {
            "state": one.state,
            **justification,
            "detail": one.detail,
            "lastUpdated": f"{one.reviewed}T00:00:00Z",
        },
        "affects": [{"ref": _purl(normalise(one.component), one.version)}],
    }


def _component(name: str, metadata: Message, wheel: Path, version: str) -> dict[str, Any]:
    purl = _purl(name, version)
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }
    if licences := _licences(metadata):
        component["licenses"] = licences
    return component


def _licences(metadata: Message) -> list[dict[str, Any]]:
    """Return the licence that a wheel names: an SPDX expression, or the name in its words."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if one.startswith("License")]
    named = classifiers or [line for line in (metadata.get("License") or "").splitlines()[:1] if line.strip()]
    return [{"license": {"name": name.strip()[:200]}} for name in named]


def _needs(metadata: Message, versions: Mapping[str, str]) -> set[str]:
    """Return what a distribution names as its own needs, as far as it is in the wheelhouse."""
    found = set()
    for requirement in metadata.get_all("Requires-Dist", []):
        match = _NAME.match(requirement)
        if match is not None and "extra ==" not in requirement and normalise(match[0]) in versions:
            found.add(_purl(normalise(match[0]), versions[normalise(match[0])]))
    return found


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
