"""What a signature would bind, shown: first what is asked, by whom, and who is still missing; then the bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from appliance.cli.support.caller import Caller
from appliance.cli.support.output import print_facts, print_line, say
from appliance.cli.support.progress import Meter, show_bytes
from appliance.cli.support.reviews import GONE, state_of, until_of
from appliance.domain.data.teaching import example_request
from appliance.domain.evaluation.quality import list_measures, list_warnings

FEW_ROWS = 100
"""Held-out rows, below which a score is said to rest on few."""

if TYPE_CHECKING:
    from appliance.client.decisions import AskedRelease
    from appliance.client.reviews import ReviewMaterial


def gather(caller: Caller, name: str) -> ReviewMaterial:
    """Downloads, hashes and checks an adapter, with a meter."""
    from appliance.client.reviews import gather as gather_evidence

    door, meter = caller.reading(), Meter(f"hashes {name}", 0, "bytes")

    def advance(count: int) -> None:
        meter.total += count
        meter.advance(count)

    evidence = gather_evidence(door, caller.anchor, name, advance)
    meter.close()
    return evidence


def print_evidence(evidence: ReviewMaterial, *, err: bool = False) -> None:
    """What is asked first, and what was found. Then the signed part: the manifest and its files. Then what they say.
    Then what only the service says."""

    def line(text: str) -> None:
        say(text) if err else print_line(text)

    for heading, said in (*(_asked(one) for one in evidence.asked), _found(evidence)):
        if said:
            line(heading)
            print_facts(said, err=err)
            line("")
    line(f"Adapter {evidence.name}. A signature binds this manifest, and through it every byte below:")
    print_facts([("  manifest", evidence.digest)], err=err)
    for file in evidence.manifest.files:
        line(f"    {file.digest}  {show_bytes(file.size):>9}  {file.path}")
    line("")
    line("Checked here: every file by its digest, the appliance's signature over them, the provenance, the log.")
    print_facts(
        [
            ("  sealed", f"entry {evidence.sealed}, {evidence.sealed_at}, under a log of {evidence.log_size} entries"),
            ("  log vouched for by", evidence.said_by),
            ("  run", f"{evidence.run}, ordered by {evidence.ordered_by}"),
            ("  order", evidence.order),
        ],
        err=err,
    )
    for title, facts in (
        ("Made of, by the signed provenance:", [(f"  {name}", digest) for name, digest in evidence.materials]),
        ("Warnings, by metrics.json:", [("  warning", text) for text in warnings_of(evidence)]),
        ("Measured on the held-out rows, in metrics.json:", _metrics(evidence)),
        ("Trained with, in recipe.json:", _members(evidence.contents.get("recipe.json"))),
        ("Taught, by the dataset that the provenance names:", _taught(evidence)),
        ("Stands on, in base.json:", _members(evidence.contents.get("base.json"))),
        ("From the service; no review confirms it:", _told(evidence)),
    ):
        if facts:
            line("")
            line(title)
            print_facts(facts, err=err)


def _asked(one: AskedRelease) -> tuple[str, list[tuple[str, object]]]:
    """By the order in the log, but for tier, what is missing and who could decide, which the service says."""
    told = one.told
    missing = "\n".join(told["missing"]) or "nothing: a release owner may activate it"
    could = ", ".join(f"{name} ({field})" for field, name in told["could_decide"]) or "none"
    emergency = "" if one.exposure is not None else ", by an emergency"
    facts: list[tuple[str, object]] = [
        ("  asked by", f"{one.by}, entry {one.entry}{emergency}"),
        ("  intended use" if not emergency else "  emergency", one.intended_use),
        ("  not to be used for", one.limits),
        ("  conditions", conditions_text(None if one.conditions is None else one.conditions.model_dump(mode="json"))),
        ("  verdict", one.verdict or "none was sealed"),
        ("  tier", f"{one.tier} ({one.exposure}, {one.purpose})" if not emergency else one.tier),
        ("  missing", missing),
        ("  could decide", could),
        ("  until", told["until"]),
    ]
    return f"Asked: to release {one.told['request']['unit']} this adapter.", facts


def _found(evidence: ReviewMaterial) -> tuple[str, list[tuple[str, object]]]:
    texts = {one.entry: one for one in evidence.found}
    facts: list[tuple[str, object]] = []
    for row in evidence.told["adapter"]["findings"]:
        text = texts[row["index"]]
        facts.append((f"  entry {row['index']}", finding_text(row)))
        facts += [("    found", text.finding), ("    remedy", text.remedy), ("    retest", text.retest)]
    return "Findings:", facts


def finding_text(row: dict[str, Any]) -> str:
    """One line: what it is, whether it blocks, whose it is, and how it stands."""
    stands = "open" if row["open"] else f"closed by {row['closed_by']}, entry {row['closed']}"
    blocks = ", blocks" if row["blocks"] else ""
    about = f"{row['severity']} {row['kind']}{blocks}; found by {row['finder']} ({row['field']})"
    return f"{stands}: {about}; owner {row['owner']}, due {row['due']}"


def conditions_text(value: dict[str, Any] | None) -> str:
    if value is None:
        return "none"
    said = (
        ("not before", value["not_before"]),
        ("not after", value["not_after"]),
        ("only the tasks", ", ".join(value["tasks"])),
        ("answers a day", value["answers_a_day"]),
    )
    return "; ".join(f"{name} {what}" for name, what in said if what)


def _members(value: Any) -> list[tuple[str, object]]:
    from appliance.domain.rulebook.showing import label_of, show_value

    return [(f"  {label_of(str(k))}", show_value(v)) for k, v in value.items()] if isinstance(value, dict) else []


def _metrics(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    metrics = evidence.contents.get("metrics.json")
    if not isinstance(metrics, dict):
        return []
    beside = [(f"  {name}", text) for name, text in list_measures(metrics)]
    of_sets = metrics.get("sets")
    shown = {who: found for who, found in metrics.items() if who != "sets"}
    shown |= {f"set {name}": found for name, found in of_sets.items()} if isinstance(of_sets, dict) else {}
    found = [(f"  {who}", dict(sorted(found.items()))) for who, found in shown.items() if isinstance(found, dict)]
    rows = metrics["adapter"].get("rows") if isinstance(metrics.get("adapter"), dict) else None
    few = isinstance(rows, int) and rows < FEW_ROWS
    return [*beside, *([("  rests on", f"{rows} rows: one answer changes much")] if few else []), *found]


def _taught(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    teaching = evidence.teaching
    told = GONE if teaching.instruction is None else teaching.instruction or "none"
    example = example_request("TASK", teaching, added=False)
    owner = GONE if evidence.owner is None else evidence.owner
    facts: list[tuple[str, object]] = [("  owner", owner), ("  task", teaching.about.task), ("  instruction", told)]
    if teaching.about.labels:
        facts.append(("  labels", ", ".join(teaching.about.labels)))
    return [*facts, ("  example", f"POST {example['path']} {json.dumps(example['body'], ensure_ascii=False)}")]


def warnings_of(evidence: ReviewMaterial) -> list[str]:
    """What the metrics that a signature binds warn of."""
    metrics = evidence.contents.get("metrics.json")
    return list_warnings(metrics) if isinstance(metrics, dict) else []


def _told(evidence: ReviewMaterial) -> list[tuple[str, object]]:
    told = evidence.told
    dataset, base = told.get("dataset") or {}, told.get("base") or {}
    reviews = told["adapter"]["reviews"]
    return [
        ("  base licence", base.get("licence")),
        ("  dataset licence", dataset.get("licence")),
        ("  dataset classification", dataset.get("classification")),
        ("  dataset imported by", dataset.get("imported_by")),
        ("  reviews", "\n".join(_review_line(r) for r in reviews) or "none yet"),
        ("  revoked", told["adapter"]["revoked"]),
        ("  quarantined", told["adapter"]["quarantined"]),
    ]


def _review_line(row: dict[str, Any]) -> str:
    decision = {"approve": "approved", "reject": "rejected"}.get(row["decision"], row["decision"])
    place = f" on behalf of {row['on_behalf_of']['principal']}" if row["on_behalf_of"] else ""
    who = f"{decision} for {row['unit']} by {row['reviewer']} ({row['field']}){place}"
    return f"entry {row['index']}: {who}{until_of(row)}; {state_of(row)}"


def evidence_value(evidence: ReviewMaterial) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "adapter": evidence.name,
        "manifest": evidence.digest,
        "files": [{"path": f.path, "size": f.size, "digest": f.digest} for f in evidence.manifest.files],
        "sealed": evidence.sealed,
        "sealed_at": evidence.sealed_at,
        "log_size": evidence.log_size,
        "log_vouched_for_by": evidence.said_by,
        "run": evidence.run,
        "ordered_by": evidence.ordered_by,
        "order": evidence.order,
        "materials": dict(evidence.materials),
        "contents": dict(evidence.contents),
        "warnings": warnings_of(evidence),
        "asked": [
            {
                "unit": one.unit,
                "order": one.order,
                "entry": one.entry,
                "by": one.by,
                "exposure": one.exposure,
                "purpose": one.purpose,
                "tier": one.tier,
                "verdict": one.verdict,
                "conditions": None if one.conditions is None else one.conditions.model_dump(mode="json"),
                "intended_use": one.intended_use,
                "limits": one.limits,
                **{name: one.told[name] for name in ("needed", "approvals", "missing", "could_decide", "until")},
            }
            for one in evidence.asked
        ],
        "findings": [
            {**row, "finding": text.finding, "remedy": text.remedy, "retest": text.retest}
            for row, text in zip(evidence.told["adapter"]["findings"], evidence.found, strict=True)
        ],
        "owner": evidence.owner,
        "teaching": {
            "task": evidence.teaching.about.task,
            "instruction": evidence.teaching.instruction,
            "labels": list(evidence.teaching.about.labels),
            "example": example_request("TASK", evidence.teaching, added=False),
        },
        "told": dict(evidence.told),
    }
