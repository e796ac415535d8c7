"""Imports and runs of docs/formats/ledger.md, "Who may", for a second verifier, from that page alone."""

from __future__ import annotations

from typing import Any

from tests.interop.second.formats import need, parse
from tests.interop.second.recipes import check_recipe
from tests.interop.second.rules import Replay, Row


class Making(Replay):
    """What may be imported and trained."""

    def stands_base(self, name: str) -> bool:
        base = self.bases.get(name)
        return base is not None and not base.revoked and not base.quarantined

    def check_import(self, row: Row) -> None:
        need(sum(one.signer == row.o.signer for one in self.imports.values()) < 8, "import: 8 are open")

    def rule_import_base(self, row: Row) -> None:
        self.check_import(row)
        waiting = [one.p["base"] for one in self.imports.values() if one.action == "import-base"]
        need(row.p["base"] not in self.bases and row.p["base"] not in waiting, "import-base: a new name")

    def rule_import_dataset(self, row: Row) -> None:
        p = row.p
        self.check_import(row)
        need(self.stands_base(p["base"]) and self.bases[p["base"]].digest == p["base_digest"], "import: its base")
        need(p["classification"] in self.p["classifications"], "import: classification")
        evaluated = {one.p["file"] for one in self.seen.values() if one.action == "import-validation-set"}
        if row.o.action == "import-dataset":
            need(not {p["file"], p["held_out"]} & evaluated, "import-dataset: rows for evaluation")

    def rule_import_validation_set(self, row: Row) -> None:
        self.rule_import_dataset(row)
        name = row.p["validation_set"]
        need(name not in ("held-out", "general", "refusal"), "import-validation-set: name")
        need(
            not name.startswith(("harness-", "metric-")) and not name.endswith("-released"),
            "import-validation-set: name",
        )

    def rule_cancel_import(self, row: Row) -> None:
        need(row.p["order"] in self.imports, "cancel-import: open")

    def sets_stand(self, run: Row) -> bool:
        return all(not self.sets[one["validation_set"]].revoked for one in run.sets)

    def inputs_stand(self, run: Row) -> None:
        need(
            self.stands_base(run.base) and not self.datasets[run.dataset].revoked and self.sets_stand(run),
            "run: its inputs stand",
        )

    def makers(self, run: Row) -> set[str]:
        return {run.signer, self.datasets[run.dataset].signer}

    def tier_named(self, name: str | None) -> dict[str, Any] | None:
        return next((one for one in self.p["tiers"] if one["name"] == name), None)

    def rule_train(self, row: Row) -> None:
        p, recipe = row.p, row.p["recipe"]
        need(self.stands_base(recipe["base"]) and self.bases[recipe["base"]].digest == p["base_digest"], "train: base")
        dataset = self.datasets.get(recipe["dataset"])
        need(dataset and not dataset.revoked and dataset.digest == p["dataset_digest"], "train: dataset")
        assert dataset is not None
        need(dataset.base == recipe["base"], "train: rendered for that base")
        need(p["tier"] is None or self.tier_named(p["tier"]), "train: tier")
        accounts = [one["person"] for one in self.p["slurm_accounts"]]
        slurm = p["on"] == "slurm"
        need(not slurm or not accounts or row.o.signer in accounts, "train: an account")
        need(not slurm or recipe["privacy"] is None, "train: privacy")
        need(recipe["processes"] % p["nodes"] == 0 and (slurm or p["nodes"] == 1), "train: nodes")
        check_recipe(recipe, self.bases[recipe["base"]].facts, dataset.facts)
        self._sweep(row)
        need(p["gates"] == row.e["documents"].get("gates"), "train: gates")
        names: set[str] = set()
        if p["gates"]:
            names = {gate["set"] for gate in parse(row.docs["gates"])["gates"]} - {"held-out"}
            required = self.p["required_gates"]
            need(not required or recipe["purpose"] != "release" or p["gates"] in required, "train: required_gates")
        else:
            need(not self.p["required_gates"] or recipe["purpose"] != "release", "train: required_gates")
        local = {n for n in names if n in ("general", "refusal") or n.startswith(("harness-", "metric-"))}
        need(sorted(one["set"] for one in p["local_sets"]) == sorted(local), "train: local_sets")
        need(sorted(one["validation_set"].split("@")[0] for one in p["sets"]) == sorted(names - local), "train: sets")
        need(not any(name.endswith("-released") for name in local), "train: local_sets")
        task = dataset.facts.get("dataset_kind")
        metric = task is None or task in ("classification", "question-answering", "summarisation")
        need(metric or not any(name.startswith("metric-") for name in local), "train: a metric of such a kind")
        for one in p["sets"]:
            bound = self.sets.get(one["validation_set"])
            need(bound and not bound.revoked and bound.digest == one["digest"], "train: a set that stands")
            assert bound is not None
            need(task is None or bound.p["dataset_kind"] == task, "train: a set of the dataset kind")
            newer = [s for s in self.sets.values() if (s.name, s.base, s.revoked) == (bound.name, bound.base, False)]
            need(bound.base == dataset.base and max(s.version for s in newer) == bound.version, "train: the newest set")

    def _sweep(self, row: Row) -> None:
        name = row.p["sweep"]
        if name is None:
            return
        need(row.p["recipe"]["eval_steps"] > 0, "sweep: a run that validates")
        mine = (row.o.signer, row.p["dataset_digest"])
        named = [run for run in self.runs.values() if run.p["sweep"] == name]
        need(all((run.signer, run.p["dataset_digest"]) == mine for run in named), "sweep: one signer's on one dataset")
        lasting = ("waiting", "queued", "running", "trained")
        counted = [
            run for run in self.runs.values()
            if (run.signer, run.p["dataset_digest"]) == mine
            and (run.p["sweep"] == name or (run.p["sweep"] and run.status in lasting))
        ]  # fmt: skip
        need(len(counted) < self.p["most_sweep_runs"], "sweep: most_sweep_runs")

    def rule_authorise_run(self, row: Row) -> None:
        run = self.runs.get(row.p["run"])
        need(run and run.status == "waiting" and run.order == row.p["order"], "authorise: a waiting run")
        assert run is not None
        need(row.o.signer not in self.makers(run), "authorise: separation of duties")
        if row.o.action == "authorise-run":
            self.inputs_stand(run)
        else:
            need(row.p["reason"], "refuse-run: a reason")

    rule_refuse_run = rule_authorise_run

    def rule_cancel(self, row: Row) -> None:
        need(self.runs[row.p["run"]].status in ("waiting", "queued", "running", "trained"), "cancel")

    def rule_resume(self, row: Row) -> None:
        run = self.runs[row.p["run"]]
        need(run.status == "failed" and run.steps, "resume: a failed run with a training checkpoint")
        self.inputs_stand(run)

    def rule_replay(self, row: Row) -> None:
        run, first, last = self.runs.get(row.p["run"]), row.p["from_step"], row.p["to_step"]
        need(run and first < last and last in run.steps and (first == 0 or first in run.steps), "replay: its steps")
        need(run and self.stands_base(run.base), "replay: the base stands")
