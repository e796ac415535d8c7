"""Gates and verdicts of docs/formats/evaluation.md for a second verifier, written from that page alone."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from tests.interop.second.formats import Broken, canonical, need, parse, sha
from tests.interop.second.statistics import NINE, Bca, Units, binomial_above, mcnemar, tango, tango_lower

LESS = ("loss", "perplexity", "brier")
LOCAL = ("general", "refusal")


def half_even(value: Fraction, places: int = 9) -> str:
    return text(round(value * 10**places), places)


def down(value: Fraction | None) -> str | None:
    return None if value is None else text(math.floor(value * NINE))


def up(value: Fraction | None) -> str | None:
    return None if value is None else text(math.ceil(value * NINE))


def text(value: int, places: int = 9) -> str:
    whole, part = divmod(abs(value), 10**places)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{places}d}"


def show(value: str) -> str:
    for places in (4, 3, 2, 1):
        if len((text := half_even(Fraction(value), places)).lstrip("-0.").replace(".", "")) <= 4:
            return text
    return half_even(Fraction(value), 0).removesuffix(".")


def show_p(value: str) -> str:
    return "p below 0.0001" if Fraction(value) < Fraction(1, 10_000) else f"p {show(value)}"


def read_items(data: bytes) -> list[dict[str, Any]]:
    items = [parse(line) for line in data.split(b"\n")[:-1]]
    rows = [one["row"] for one in items]
    need(data.endswith(b"\n") and rows == sorted(set(rows)), "items: sorted by row, each once")
    return items


def value_of(answer: dict[str, Any], metric: str) -> int | None:
    """In millionths."""
    right, confidence = answer["right"], answer["confidence"]
    if metric == "accuracy":
        return None if right is None else 10**6 * right
    if metric == "brier":
        return (
            None if right is None or confidence is None else round(Fraction((confidence - 10**6 * right) ** 2, 10**6))
        )
    found: int | None = answer["scores"].get(metric)
    return found


class Untested(Exception):
    def __init__(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason = outcome, reason


class Evidence:
    """What a verdict is computed from: items by set, those of other models, and counts."""

    def __init__(self, own: dict[str, bytes], others: dict[tuple[str, str], bytes | None]) -> None:
        self.own = {name: read_items(data) for name, data in own.items()}
        self.others = {key: None if data is None else read_items(data) for key, data in others.items()}
        self.bytes: dict[tuple[str, str], bytes] = {("run", name): data for name, data in own.items()}
        self.bytes |= {key: data for key, data in others.items() if data is not None}
        self.before: dict[str, int] = {}
        self.named: dict[str, int | None] = {}
        self.overlap: dict[str, tuple[Any, Any]] = {}


class Tested:
    """One gate on its items."""

    def __init__(self, gates: dict[str, Any], gate: dict[str, Any], evidence: Evidence) -> None:
        self.gates, self.gate, self.evidence = gates, gate, evidence
        self.factor, self.holm = Fraction(1), 1
        self.p: Fraction | None = None
        self.adjusted: Fraction | None = None
        self.outcome, self.reason, self.parts = "failed", "", list[dict[str, Any]]()
        self.units: Units | None = None
        self.alpha = Fraction(gates["alpha"])
        self.before = before = evidence.before.get(gate["set"], 0)
        self.factor = {
            "spend": Fraction((before + 1) * (before + 2)),
            "divide": Fraction(before + 1),
            "once": Fraction(1),
        }[gates["run_correction"]]
        try:
            self._select()
            self._informative()
            self._test()
        except Untested as untested:
            self.outcome, self.reason = untested.outcome, untested.reason

    def _select(self) -> None:
        gate, e = self.gate, self.evidence
        name, metric = gate["set"], gate["metric"]
        own = e.own.get(name)
        if own is None:
            raise Untested("failed", f"expected items of the set {name}, got none")
        if e.named.get(name):
            raise Untested(
                "failed",
                f"the set {name} is final, and {e.named[name]} runs of this adapter's name were evaluated on it before",
            )
        for count, most, words in zip(
            e.overlap.get(name, (None, None)), ("most_overlap", "most_near_overlap"),
            ("trained on", "nearly the same as one that is trained on"), strict=True,
        ):  # fmt: skip
            share = Fraction(self.gates[most])
            if (count == "many" and share < 1) or (isinstance(count, int) and count > share * len(own)):
                tail = "are trained on, and" if most == "most_overlap" else f"are {words}, and"
                blind = ", a blind set," if count == "many" else ""
                raise Untested(
                    "failed",
                    f"{count} of {len(own)} rows of {name}{blind} {tail} at most a share of {self.gates[most]} may be",
                )
        before = e.before.get(name, 0)
        if self.gates["run_correction"] == "once" and before:
            raise Untested("failed", f"the set {name} can be used once, and {before} runs were evaluated on it before")
        other = self._other(own)
        ours = [value_of(one["adapter"], metric) for one in own]
        if None in ours or None in other:
            others = e.others.get((gate["comparison"], name)) or own
            answer = (own if None in ours else others)[0]["adapter"]
            got = [one for one in ("right", "confidence") if answer[one] is not None] + sorted(answer["scores"])
            wanted = {"accuracy": ["right"], "brier": ["right", "confidence"]}.get(metric, [metric])
            missing = ", ".join(one for one in wanted if one not in got)
            raise Untested(
                "failed", f"items, metric {metric}: expected {missing} in every answer, got {', '.join(got)}"
            )
        self.items, self.ours, self.theirs = own, ours, other
        self.sign = -1 if metric in LESS else 1
        self.gains = [self.sign * (a - b) for a, b in zip(ours, other, strict=True)]
        self.units = Units(self.gains, [one["cluster"] for one in own])
        if len(own) < gate["least_items"]:
            raise Untested("failed", f"expected {gate['least_items']} items or more, got {len(own)}")
        n, units, test = len(own), self.units.count, gate["test"]
        if test in ("mcnemar", "tango") and units < n:
            raise Untested("failed", f"{test} counts items that are independent, and of {n} some belong together: "
                           "a gates file for this set of rows names permutation or bootstrap")  # fmt: skip
        tail = (
            f"needs 20 units or more, and {n} items that belong together are {units}: a gates file for this set of rows"
        )
        if units < 20 and test in ("bootstrap", "tost"):
            claim = " and the claim no-worse" if gate["claim"] == "equivalent" else ""
            raise Untested("failed", f"{test} {tail} names permutation{claim}")
        if units < 20 and gate["chance"] is not None:
            raise Untested("failed", f"chance {tail} has no chance")

    def _other(self, own: list[dict[str, Any]]) -> list[Any]:
        gate, e = self.gate, self.evidence
        comparison, name, metric = gate["comparison"], gate["set"], gate["metric"]
        if comparison == "base":
            return [value_of(one["base"], metric) for one in own]
        if comparison == "released" and (comparison, name) not in e.others:
            raise Untested("not-applicable", "no version is released to compare with")
        found = e.others.get((comparison, name))
        if found is None:
            raise Untested("failed", f"expected items of {comparison} on the set {name}, got none")
        first, second = {one["row"] for one in own}, {one["row"] for one in found}
        if first != second:
            only = f"{len(first - second)} that only the first has and {len(second - first)} that only the second has"
            raise Untested("failed", f"items: expected the same {len(own)} rows in both records, got {only}")
        return [value_of(one["adapter"], metric) for one in found]

    def _informative(self) -> None:
        chance = self.gate["chance"]
        if chance is None:
            return
        assert self.units is not None
        level, n = Fraction(chance), len(self.items)
        if self.units.count == n:
            p = binomial_above(sum(self.theirs) // 10**6, n, level)
        else:
            p = Units(self.theirs, [one["cluster"] for one in self.items]).more(level)
        if p > self.alpha:
            said = f"not informative: {self.gate['comparison']} is not shown to be above chance ({chance})"
            raise Untested("not-informative", said)

    def _test(self) -> None:
        gate, units = self.gate, self.units
        assert units is not None
        margin, seed = Fraction(gate["margin"]), self.gates["seed"]
        m = margin if gate["claim"] == "better" else -margin
        b, c = pairs(self.gains)
        self.bca: Bca | None = None
        if gate["test"] in ("permutation", "bootstrap"):
            many = gate["resamples"] or (9_999 if gate["test"] == "permutation" else 1_999)
            self.draws = many
            self.bca = units.bootstrap(
                seed, gate["name"] + "/bootstrap", 1_999 if gate["test"] == "permutation" else many
            )
        if gate["test"] == "mcnemar":
            self.p = mcnemar(b, c)
        elif gate["test"] == "tango":
            self.p = tango(b, c, units.items, m)
        elif gate["test"] == "permutation":
            self.p = units.permutation(m, seed, gate["name"] + "/permutation", many)
        elif self.bca is not None:
            self.p = self.bca.p(m)
        else:
            self.p = units.more(m)
            if gate["claim"] == "equivalent":
                self.p = max(self.p, units.less(margin))

    def ends(self) -> tuple[Fraction | None, Fraction | None]:
        assert self.units is not None
        level = self.alpha / (self.factor * self.holm)
        if self.bca is not None:
            return self.bca.ends(level)
        if self.gate["test"] == "tost":
            return self.units.t_lower(level), self.units.t_upper(level)
        return interval(self.gains, level)

    def result(self) -> dict[str, Any]:
        gate = self.gate
        found: dict[str, Any] = dict.fromkeys(
            ("ours", "theirs", "gain", "lower", "upper", "confidence", "p", "adjusted"), None
        )
        found |= {"gate": gate["name"], "metric": gate["metric"], "outcome": self.outcome, "reason": self.reason}
        found |= {"items": self.units.items if self.units else 0, "units": self.units.count if self.units else 0}
        found["slices"] = self.parts
        if self.units is None:
            return found
        found |= {"ours": mean(self.ours), "theirs": mean(self.theirs), "gain": half_even(self.units.mean)}
        if self.p is None:
            return found
        assert self.adjusted is not None
        lower, upper = self.ends()
        level = 2 * self.alpha / (self.factor * self.holm)
        found |= {"lower": down(lower), "upper": up(upper), "confidence": down(1 - level)}
        found |= {"p": up(self.p), "adjusted": up(self.adjusted)}
        passed = self.adjusted <= self.alpha
        found["outcome"] = self.outcome = "passed" if passed else "failed"
        claim = {"better": "better", "no-worse": "no worse", "equivalent": "equivalent"}[gate["claim"]]
        claim += f" by the margin {gate['margin']}" if Fraction(gate["margin"]) else ""
        found["reason"] = (
            f"{gate['metric']} {show(found['ours'])}, {gate['comparison']} {show(found['theirs'])}: "
            f"{'' if passed else 'not shown to be '}{claim} "
            f"({show_p(found['adjusted'])} after correction, alpha {self.gates['alpha']})"
        )
        if not passed and self.factor > 1:
            found["reason"] += f"; corrected for {plural(self.before, 'earlier evaluation')} on {gate['set']}"
        if self.bca is not None and self.factor * self.holm > (self.draws + 1) * self.alpha:
            found["reason"] += (
                f"; {self.draws} resamples can show nothing here: name more, or a set with fewer evaluations"
            )
        self.reason = found["reason"]
        return found

    def slices(self) -> list[dict[str, Any]]:
        found = []
        for by in sorted(self.gate["slices"]) if self.units is not None else ():
            values = sorted({one["slices"][by] for one in self.items} - {None})
            for value in values:
                at = [k for k, one in enumerate(self.items) if one["slices"][by] == value]
                found.append(self._part(by, value, at))
        evaluated = [one for one in found if one["_p"] is not None]
        for one, adjusted in zip(evaluated, holm([part["_p"] for part in evaluated]), strict=True):
            one |= {"adjusted": up(adjusted[0]), "worse": adjusted[0] <= self.alpha}
        for one in found:
            del one["_p"]
        return found

    def _part(self, by: str, value: str, at: list[int]) -> dict[str, Any]:
        gains, clusters = [self.gains[k] for k in at], [self.items[k]["cluster"] for k in at]
        units = Units(gains, clusters)
        part: dict[str, Any] = {"by": by, "value": value, "items": len(at), "gain": half_even(units.mean)}
        part |= {"ours": mean([self.ours[k] for k in at]), "theirs": mean([self.theirs[k] for k in at])}
        part |= dict.fromkeys(("lower", "upper", "p", "adjusted", "_p")) | {"worse": False}
        if len(at) >= self.gates["least_slice"]:
            if self.gate["metric"] == "accuracy" and units.count == len(at):
                b, c = pairs(gains)
                p, (lower, upper) = mcnemar(c, b), interval(gains, self.alpha)
            else:
                p, lower, upper = units.less(Fraction(0)), units.t_lower(self.alpha), units.t_upper(self.alpha)
            part |= {"_p": p, "p": up(p), "lower": down(lower), "upper": up(upper)}
        return part


def pairs(gains: list[int]) -> tuple[int, int]:
    return sum(one > 0 for one in gains), sum(one < 0 for one in gains)


def interval(gains: list[int], level: Fraction) -> tuple[Fraction, Fraction]:
    b, c = pairs(gains)
    return tango_lower(b, c, len(gains), level), -tango_lower(c, b, len(gains), level)


def mean(values: list[int]) -> str:
    return half_even(Fraction(sum(values), 10**6 * len(values)))


def holm(values: list[Fraction]) -> list[tuple[Fraction, int]]:
    order = sorted(range(len(values)), key=lambda k: values[k])
    found: list[tuple[Fraction, int]] = [(Fraction(0), 1)] * len(values)
    last = Fraction(0)
    for place, k in enumerate(order):
        times = len(values) - place
        last = max(last, min(Fraction(1), values[k] * times))
        found[k] = (last, times)
    return found


def compute(gates_bytes: bytes, evidence: Evidence) -> bytes:
    """Return the verdict's bytes."""
    gates = parse(gates_bytes)
    tested = [Tested(gates, gate, evidence) for gate in gates["gates"]]
    counted = [one for one in tested if one.outcome == "failed"]
    values = [Fraction(1) if one.p is None else min(Fraction(1), one.p * one.factor) for one in counted]
    corrected = holm(values) if gates["correction"] == "holm" else [(value, 1) for value in values]
    for one, (adjusted, times) in zip(counted, corrected, strict=True):
        one.adjusted, one.holm = adjusted, times
    for one in tested:
        one.parts = one.slices()
    results = [one.result() for one in tested]
    used = {("run", gate["set"]) for gate in gates["gates"] if gate["set"] in evidence.own}
    used |= {(g["comparison"], g["set"]) for g in gates["gates"] if g["comparison"] != "base"}
    evaluated = [
        {
            "model": model, "set": name, "digest": sha(evidence.bytes[(model, name)]),
            "items": evidence.bytes[(model, name)].count(b"\n"), "evaluated_before": evidence.before.get(name, 0),
            "named_before": evidence.named.get(name), "duplicates": evidence.overlap.get(name, (None, None))[0],
            "near_duplicates": evidence.overlap.get(name, (None, None))[1],
        }
        for model, name in sorted(used)
        if (model, name) in evidence.bytes
    ]  # fmt: skip
    return canonical(
        {"version": 1, "gates": sha(gates_bytes), "evaluated": evaluated, "results": results, **kinds(gates, results)}
    )


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def about_parts(parts: list[dict[str, Any]]) -> str:
    noun = "label" if {one["by"] for one in parts} <= {"label"} else "subgroup"
    evaluated, worse = sum(one["p"] is not None for one in parts), [repr(one["value"]) for one in parts if one["worse"]]
    text = f" No significant regression in {plural(evaluated, noun)}." if evaluated and not worse else ""
    if worse:
        text += f" Significant regression in {len(worse)} of {plural(evaluated, noun)}: {first_three(worse)}."
    if evaluated < len(parts):
        text += f" {len(parts) - evaluated} of {plural(len(parts), noun)} could not be evaluated: too few rows."
    return text


def kinds(gates: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    by = {
        kind: [r for g, r in zip(gates["gates"], results, strict=True) if g["kind"] == kind]
        for kind in ("target", "regression")
    }
    failed = {kind: any(r["outcome"] == "failed" for r in found) for kind, found in by.items()}
    passed = [r for r in by["target"] if r["outcome"] == "passed"]
    parts = [(r["gate"], one) for r in results for one in r["slices"]]
    target = not failed["target"] and bool(passed)
    regression = not failed["regression"] and not any(one["worse"] for _, one in parts)
    outcomes = [r["outcome"] for r in results]
    against = [r["gate"] for r in results if r["outcome"] == "failed"]
    if target and regression:
        why = f"Passed {outcomes.count('passed')} of {plural(len(results), 'gate')}"
        for other in ("not-applicable", "not-informative"):
            why += f"; {outcomes.count(other)} {other.replace('-', ' ')}" if other in outcomes else ""
        why += "."
    elif against:
        why = f"Not passed: {len(against)} of {plural(len(results), 'gate')} failed: {first_three(against)}."
    else:
        why = "Not passed: " + (
            "a subgroup is worse." if target else "no gate of the target metric could be evaluated."
        )
    why += about_parts([one for _, one in parts])
    return {"target_passed": target, "regression_passed": regression, "passed": target and regression, "why": why}


# Verdicts in the log.


def same_file(dataset: Any) -> str:
    held: str = dataset.p["held_out"]
    return held if held.startswith("sha256:") else dataset.p["file"]


def evaluated_before(log: Any, run: Any, name: str) -> int:
    """Count the runs that were sealed and evaluated on the same rows before."""
    mine, count = log.datasets[run.dataset], 0
    for other in log.runs.values():
        if other.sealed is None:
            continue
        theirs = log.datasets[other.dataset]
        same = theirs.name == mine.name or same_file(theirs) == same_file(mine)
        if name == "held-out":
            count += same
        elif name in {one["set"] for one in run.local_sets}:
            count += same and name in {one["set"] for one in other.local_sets}
        else:
            bound = next(
                log.sets[one["validation_set"]] for one in run.sets if one["validation_set"].split("@")[0] == name
            )
            evaluated = [log.sets[one["validation_set"]] for one in other.sets]
            count += any(one.name == name or one.p["file"] == bound.p["file"] for one in evaluated)
    return count


def named_before(log: Any, run: Any, name: str) -> int | None:
    bound = [log.sets[one["validation_set"]] for one in run.sets if one["validation_set"].split("@")[0] == name]
    if not bound or not bound[0].p["final"]:
        return None
    others = [one for one in log.runs.values() if one.sealed and one.recipe["name"] == run.recipe["name"]]
    evaluated = [[log.sets[s["validation_set"]] for s in one.sets] for one in others]
    return sum(any(s.name == name or s.p["file"] == bound[0].p["file"] for s in found) for found in evaluated)


def path_of(name: str) -> str:
    return "items.jsonl" if name == "held-out" else f"items-{name}.jsonl"


def evaluate_sealed(log: Any, row: Any, run: Any, files: dict[str, str], items: dict[str, bytes]) -> None:
    """Check "Verdicts in the log", and compute the verdict again if the items are at hand."""
    names = [one["validation_set"].split("@")[0] for one in run.sets] + [one["set"] for one in run.local_sets]
    need(all(path_of(name) in files for name in ["held-out", *names]), "sealed: items of each set")
    extra = {path for path in files if path.startswith("items")} - {path_of(name) for name in ["held-out", *names]}
    need(extra <= {f"items-{name}-released.jsonl" for name in ["held-out", *names]}, "sealed: no other items")
    if not run.gates:
        need(not extra, "sealed: no other items")
        return
    gates, verdict = parse(row.docs["gates"]), parse(row.docs["verdict"])
    need(verdict["gates"] == run.gates == sha(row.docs["gates"]) and verdict["version"] == 1, "verdict: its gates")
    need(len(verdict["results"]) == len(gates["gates"]), "verdict: a result for each gate")
    for gate, result in zip(gates["gates"], verdict["results"], strict=True):
        check_result(gates, gate, result, evaluated_before(log, run, gate["set"]))
    need(
        all(verdict[name] == value for name, value in kinds(gates, verdict["results"]).items()),
        "verdict: kinds and why",
    )
    recompute = check_evaluated(log, row, run, files, gates, verdict, items)
    if recompute is not None:
        need(compute(row.docs["gates"], recompute) == row.docs["verdict"], "verdict: the same bytes from the items")


def check_result(gates: dict[str, Any], gate: dict[str, Any], result: dict[str, Any], before: int) -> None:
    need((result["gate"], result["metric"]) == (gate["name"], gate["metric"]), "verdict: the set's gates")
    alpha = Fraction(gates["alpha"])
    if result["p"] is None:
        allowed = {"failed"} | ({"not-informative"} if gate["chance"] else set())
        allowed |= {"not-applicable"} if gate["comparison"] == "released" else set()
        need(result["outcome"] in allowed, "verdict: outcome without a p-value")
        return
    adjusted = Fraction(result["adjusted"])
    need(result["outcome"] == ("passed" if adjusted <= alpha else "failed"), "verdict: outcome")
    factor = {"spend": (before + 1) * (before + 2), "divide": before + 1, "once": 1}[gates["run_correction"]]
    need(adjusted >= min(Fraction(1), (Fraction(result["p"]) - Fraction(1, NINE)) * factor), "verdict: earlier runs")
    for part in result["slices"]:
        worse = part["adjusted"] is not None and Fraction(part["adjusted"]) <= alpha
        need(part["worse"] == worse, "verdict: parts")


def check_evaluated(
    log: Any,
    row: Any,
    run: Any,
    files: dict[str, str],
    gates: dict[str, Any],
    verdict: dict[str, Any],
    items: dict[str, bytes],
) -> Evidence | None:
    """Check `evaluated` of the log. Return the verdict's inputs, or None if items are not at hand."""
    known = {digest for one in log.adapters.values() for path, digest in one.files.items() if path.startswith("items")}
    own: dict[str, bytes] = {}
    others: dict[tuple[str, str], bytes | None] = {}
    metrics, complete = row.b["metrics"].get("sets", {}), True
    counts: dict[str, Any] = {}
    for one in verdict["evaluated"]:
        name, digest = one["set"], one["digest"]
        need(one["evaluated_before"] == evaluated_before(log, run, name), "verdict: evaluated_before")
        need(one["named_before"] == named_before(log, run, name), "verdict: named_before")
        told = metrics.get(name, {})
        overlap = (told.get("duplicates"), told.get("near_duplicates"))
        need((one["duplicates"], one["near_duplicates"]) == overlap, "verdict: duplicates")
        if one["model"] == "run":
            need(files.get(path_of(name)) == digest, "verdict: the run's items")
        else:
            released = files.get(f"items-{name}-released.jsonl")
            need(digest in known or digest == released, "verdict: items that a seal lists")
        counts[name] = one
        complete = complete and digest in items
        if one["model"] == "run":
            own[name] = items.get(digest, b"")
        else:
            others[(one["model"], name)] = items.get(digest, b"")
    need({gate["set"] for gate in gates["gates"]} <= set(own), "verdict: each set of the gates")
    if not complete or not own:
        return None
    for gate, result in zip(gates["gates"], verdict["results"], strict=True):
        key = (gate["comparison"], gate["set"])
        if gate["comparison"] != "base" and key not in others and result["outcome"] == "failed":
            others[key] = None
    evidence = Evidence(own, others)
    for name, one in counts.items():
        evidence.before[name], evidence.named[name] = one["evaluated_before"], one["named_before"]
        evidence.overlap[name] = (one["duplicates"], one["near_duplicates"])
    return evidence


__all__ = ["Broken", "Evidence", "compute", "evaluate_sealed"]
