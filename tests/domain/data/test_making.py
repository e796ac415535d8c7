"""The rules for bases, datasets, runs, adapters and their reviews."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.order import Order
from appliance.domain.data.artifacts import BaseImported, BaseQuarantined
from appliance.domain.data.imports import CancelImport, ImportBase, ImportCancelled, ImportFailed, ImportRequested
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.adapters import AdapterQuarantined, AdapterRevoked, AdapterSealed, RevokeAdapter
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.runs.conditions import MOST_RESUMES
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.runs.training import RunFailed, RunRequested
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import Statement, encode_envelope, encode_statement, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner, Signer
from scripts.kit.log_builder import LAYERS, SANDBOX_PROBES, LogBuilder, manifest, order_of, policy_set, stage
from tests.kit.refusals import refuses

TEXT = "hmac-sha256:" + "0" * 64

# Imports.


def base_order(site: LogBuilder, by: str = "ines", /, **fields: Any) -> ImportBase:
    defaults: dict[str, Any] = {
        "base": "smollm2",
        "format": "gguf",
        "source": digest_bytes(b"gguf"),
        "licence": "Apache-2.0",
    }
    return site.order(ImportBase, by, **defaults | fields)


def request(site: LogBuilder, order: Order) -> Any:
    return site.ordered(ImportRequested(policy=site.in_force), order)


def test_an_imported_base_and_dataset_are_what_was_ordered() -> None:
    site = stage("imported")
    base, dataset = site.state.bases.get("smollm2"), site.state.datasets.get("clauses@1")
    assert base is not None and dataset is not None
    assert base.digest == digest_bytes(manifest("smollm2", 1, {"w": b"base"}))
    assert (base.licence, base.imported_by) == ("Apache-2.0", "ines")
    assert (dataset.licence, dataset.classification, dataset.imported_by) == ("CC-BY-4.0", "internal", "ines")
    assert dataset.base_digest == base.digest


@pytest.mark.parametrize("name", ["rita", "anna", "audrey", "legal", "otto"])
def test_only_an_operator_imports(name: str) -> None:
    site = stage("imported")
    with refuses(site, Denied, "This action needs operator"):
        request(site, base_order(site, name, base="other"))
    with refuses(site, Denied, "This action needs operator"):
        request(site, site.dataset_order(name))


def test_a_bases_name_is_taken_once_and_one_import_runs_at_a_time() -> None:
    site = stage("staffed")
    requested = request(site, base_order(site))
    with refuses(site, Denied, "An import of base model smollm2 waits or runs."):
        request(site, base_order(site))
    request(site, base_order(site, base="another"))
    site.add(site.base_imported(requested), documents={"manifest": manifest("smollm2", 1, {"w": b""})})
    with refuses(site, Denied, "A base model with the name smollm2 was imported."):
        request(site, base_order(site))


def test_a_failed_import_may_be_ordered_again() -> None:
    site = stage("staffed")
    requested = request(site, base_order(site))
    site.add(ImportFailed(order=order_of(requested), code="bad-input", message=TEXT))
    with refuses(site, Denied, "expected one under way, got failed"):
        site.add(site.base_imported(requested), documents={"manifest": manifest("smollm2", 1, {"w": b""})})
    site.import_base()


def test_an_import_is_cancelled_by_who_ordered_it_or_an_administrator() -> None:
    for name in ("ines", "anna"):
        site = stage("staffed")
        requested = site.request_import("smollm2")
        site.cancel_import(requested, name)
        record = site.state.imports.get(order_of(requested))
        assert record is not None and record.status == "cancelled"
        site.import_base("smollm2")
    for name in ("olga", "rita", "otto"):
        site = stage("staffed")
        requested = site.request_import("smollm2")
        with refuses(site, Denied, "This action needs ", ". This action needs"):
            site.cancel_import(requested, name)


def test_a_cancelled_import_has_no_other_end() -> None:
    site = stage("staffed")
    requested = site.request_import("smollm2")
    site.cancel_import(requested)
    with refuses(site, Denied, "The import of smollm2 is cancelled."):
        site.cancel_import(requested)
    with refuses(site, Denied, "expected one under way, got cancelled"):
        site.add(ImportFailed(order=order_of(requested), code="x", message=TEXT))
    with refuses(site, Denied, "expected one under way, got cancelled"):
        site.add(site.base_imported(requested), documents={"manifest": manifest("smollm2", 1, {"w": b""})})
    nobody = site.order(CancelImport, "ines", order="sha256:" + "0" * 64)
    with refuses(site, Denied, "No import was ordered by the order"):
        site.ordered(ImportCancelled(policy=site.in_force), nobody)


def test_a_dataset_is_rendered_for_a_base_that_is_there() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "No base model with the name smollm2 was imported."):
        request(site, site.dataset_order())
    site.import_base()
    with refuses(site, Denied, f"The imported one has the digest {site.base_digest}"):
        request(site, site.dataset_order(base_digest=NO_DIGEST))


def test_a_train_order_requests_no_import() -> None:
    site = stage("imported")
    with refuses(site, Denied, "order: expected import-base, import-dataset, import-validation-set, got train"):
        request(site, site.train_order())


def test_an_import_ends_once_and_only_where_it_began() -> None:
    site = stage("imported")
    done = next(i.order for i in site.state.imports.values() if i.action == "import-base")
    body = BaseImported(order=done, base="smollm2", facts={}, sandbox_probes=SANDBOX_PROBES)
    listed = {"manifest": manifest("smollm2", 1, {"w": b""})}
    with refuses(site, Denied, "expected one under way, got finished"):
        site.add(body, documents=listed)
    with refuses(site, Denied, "expected one under way, got finished"):
        site.add(ImportFailed(order=done, code="x", message=TEXT))
    with refuses(site, Denied, f"import {NO_DIGEST}: expected one under way, got none"):
        site.add(body.model_copy(update={"order": NO_DIGEST}), documents=listed)


def test_an_import_ends_as_what_was_ordered() -> None:
    site = stage("imported")
    base = request(site, base_order(site, base="other"))
    dataset = request(site, site.dataset_order(dataset="names"))
    listed = {"manifest": manifest("x", 1, {"w": b""})}
    with refuses(site, Denied, "subject: expected base:other, got base:smollm2"):
        site.add(site.base_imported(base, "smollm2"), documents=listed)
    with refuses(site, Denied, "subject: expected dataset:names, got dataset:clauses"):
        site.add(site.dataset_imported(dataset, dataset="clauses@2"), documents=listed)
    with refuses(site, Denied, "subject: expected dataset:names, got base:names"):
        site.add(site.base_imported(dataset, "names"), documents=listed)


def test_versions_of_a_dataset_count_up() -> None:
    site = stage("imported")
    requested = request(site, site.dataset_order())
    listed = {"manifest": manifest("clauses", 2, {"rows": b""})}
    for wrong in ("clauses@1", "clauses@3"):
        with refuses(site, Denied, "version: expected 2"):
            site.add(site.dataset_imported(requested, dataset=wrong), documents=listed)
    site.add(site.dataset_imported(requested, dataset="clauses@2"), documents=listed)


def test_a_dataset_for_an_unknown_base_is_refused() -> None:
    site = stage("imported")
    requested = request(site, site.dataset_order())
    with refuses(site, Denied, "base: expected an imported one, got other"):
        site.add(
            site.dataset_imported(requested, dataset="clauses@2", base="other"),
            documents={"manifest": manifest("clauses", 2, {"rows": b""})},
        )


def test_what_is_no_manifest_is_no_base_and_no_dataset() -> None:
    site = stage("imported")
    base, dataset = request(site, base_order(site, base="other")), request(site, site.dataset_order())
    with refuses(site, BadInput, "manifest"):
        site.add(site.base_imported(base, "other"), documents={"manifest": b"{}"})
    with refuses(site, BadInput, "manifest"):
        site.add(site.dataset_imported(dataset, dataset="clauses@2"), documents={"manifest": b"[]"})


def test_a_base_in_quarantine_serves_nothing_new() -> None:
    site = stage("approved")
    site.add(BaseQuarantined(base="smollm2", message=TEXT))
    reason = "The files of base model smollm2 have changed on disk, so that entry 28 put"
    with refuses(site, Denied, reason):
        site.activate()
    with refuses(site, Denied, reason):
        site.request_run()
    with refuses(site, Denied, reason):
        request(site, site.dataset_order())
    with refuses(site, Denied, "base: expected one not in quarantine, got smollm2"):
        site.add(BaseQuarantined(base="smollm2", message=TEXT))
    with refuses(site, Denied, "base: expected one not in quarantine, got other"):
        site.add(BaseQuarantined(base="other", message=TEXT))


# Runs.


def test_only_an_operator_trains() -> None:
    site = stage("imported")
    for name in ("rita", "anna", "otto", "audrey", "legal"):
        with refuses(site, Denied, "This action needs operator"):
            site.request_run(name)


@pytest.mark.parametrize(
    ("recipe", "fields", "words"),
    [
        ({"base": "other"}, {}, "No base model with the name other was imported."),
        ({"dataset": "clauses@2"}, {}, "No dataset with the name clauses@2 was imported."),
        ({}, {"base_digest": NO_DIGEST}, ". The imported one has the digest"),
        ({}, {"dataset_digest": NO_DIGEST}, ". The imported one has the digest"),
    ],
)
def test_a_run_names_base_and_dataset_by_their_bytes(recipe: Any, fields: Any, words: str) -> None:
    site = stage("imported")
    order = site.train_order("olga", recipe, **fields)
    with refuses(site, Denied, words):
        site.ordered(RunRequested(policy=site.in_force, run="r-000001"), order)


def measured(site: LogBuilder, base: Any, dataset: Any) -> None:
    """As the workers measured, or as a hostile service writes."""
    for table, name, facts in ((site.state.bases, "smollm2", base), (site.state.datasets, "clauses@1", dataset)):
        row = table.get(name)
        assert row is not None
        table.put(name, row.model_copy(update={"facts": facts}))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"max_length": 8193}, "recipe, max_length: expected at most the base's context of 8192 tokens, got 8193"),
        ({"max_length": 31}, "recipe, max_length: expected at least 32 tokens, the longest row of clauses@1, got 31"),
        ({"method": "dora"}, "purpose: expected baseline, since only these can be released: qlora on nf4-double, "),
        ({"method": "lora", "quantisation": "int8"}, "got release of lora on int8"),
        ({"method": "ia3", "rank": 0, "alpha": 0}, "got release of ia3 on nf4-double"),
        ({"method": "full", "quantisation": "none", "rank": 0, "alpha": 0, "target_modules": ()}, "release of full"),
        ({"quantisation": "none"}, "quantisation: expected nf4-double for qlora, got none"),
        (
            {"method": "lora", "quantisation": "gptq"},
            "quantisation: expected another than gptq for this base, got gptq",
        ),
        ({"method": "dora", "purpose": "baseline", "rank": 0}, "recipe, rank: expected at least 1, got 0"),
        ({"optimiser": "paged-adamw-8bit"}, "since bitsandbytes pages only on a CUDA device, got paged-adamw-8bit"),
        ({"warmup_ratio": "1.0"}, "warmup_ratio: expected a warm-up shorter than the run's"),
        ({"loraplus_lr_ratio": "16.0"}, "loraplus_lr_ratio: expected 1.0 or auto for qlora, got 16.0"),
        ({"target_modules": ("q_proj", "lm_head")}, "recipe, target_modules: expected some of"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_not_trained(recipe: dict[str, Any], words: str) -> None:
    site = stage("imported")
    measured(site, {"context_length": 8192}, {"max_tokens": 32, "train_rows": 100})
    with refuses(site, Denied, words):
        site.ordered(RunRequested(policy=site.in_force, run="r-000001"), site.train_order("olga", recipe))
    for length in (32, 8192):
        fork = site.fork()
        order = fork.train_order("olga", {"max_length": length})
        fork.ordered(RunRequested(policy=site.in_force, run="r-000001"), order)


@pytest.mark.parametrize("value", ["8192", None, [], {}])
def test_facts_that_are_no_numbers_do_not_stop_the_fold(value: Any) -> None:
    """Only the service signs them; a replay of a hostile log gives findings and does not crash."""
    site = stage("imported")
    measured(site, {"context_length": value}, {"max_tokens": value})
    site.request_run()


def test_a_dataset_rendered_for_another_base_is_not_trained_on() -> None:
    site = stage("imported")
    site.ordered(ImportRequested(policy=site.in_force), base_order(site, base="other"))
    record = next(i for i in site.state.imports.values() if i.status == "requested")
    body = BaseImported(order=record.order, base="other", facts={}, sandbox_probes=SANDBOX_PROBES)
    site.add(body, documents={"manifest": manifest("other", 1, {"w": b"other"})})
    other = site.state.bases.get("other")
    assert other is not None
    order = site.train_order("olga", {"base": "other"}, base_digest=other.digest)
    with refuses(site, Denied, "Dataset clauses@1 was rendered for the base model smollm2. The recipe names"):
        site.ordered(RunRequested(policy=site.in_force, run="r-000001"), order)


@pytest.mark.parametrize("run", ["r-000002", "r-000000", "r-0000001"])
def test_runs_count_up(run: str) -> None:
    site = stage("imported")
    with refuses(site, Denied, "run: expected r-000001"):
        site.ordered(RunRequested(policy=site.in_force, run=run), site.train_order())


def test_nothing_trains_in_a_sandbox_that_a_probe_escaped() -> None:
    site = stage("imported")
    run = site.request_run()
    with refuses(site, Denied, "sandbox_probes: expected every probe refused, got through: tcp"):
        site.add(site.started(run, sandbox_probes=SANDBOX_PROBES | {"tcp": "open"}))
    with refuses(site, Denied, "sandbox_probes: expected the worker's probes, got none"):
        site.add(site.started(run, sandbox_probes={}))


def test_a_layer_is_missing_only_where_policy_accepts_it_and_the_entry_says_so() -> None:
    site = stage("imported")
    run = site.request_run()
    gap = LAYERS | {"user-ns": False}
    with refuses(site, Denied, "layers: expected all but [], got without ['user-ns']"):
        site.add(site.started(run, layers=gap, accepted_missing=("user-ns",)))
    site.adopt(policy_set(accepted_missing_layers=("user-ns", "pid-ns")))
    with refuses(site, Denied, "accepted_missing: expected ['user-ns']"):
        site.add(site.started(run, layers=gap))
    with refuses(site, Denied, "accepted_missing: expected ['user-ns']"):
        site.add(site.started(run, layers=gap, accepted_missing=("user-ns", "pid-ns")))
    site.add(site.started(run, layers=gap, accepted_missing=("user-ns",)))


def test_a_run_goes_one_way() -> None:
    site = stage("imported")
    run = site.request_run()
    failed = RunFailed(run=run, code="x", message=TEXT)
    with refuses(site, Denied, "expected one that is running, got queued"):
        site.add(site.finished(run))
    for _ in range(1 + MOST_RESUMES):  # a worker that ends before its first training checkpoint begins again
        site.add(site.started(run))
    with refuses(site, Denied, f"expected at most {MOST_RESUMES}, got {MOST_RESUMES + 1}"):
        site.add(site.started(run))
    body, documents = site.sealing(run)
    with refuses(site, Denied, "expected one that is trained, got running"):
        site.add(body, documents=documents)
    site.add(failed)
    for again in (failed, site.finished(run), site.started(run)):
        with refuses(site, Denied, "got failed"):
            site.add(again)
    with refuses(site, Denied, "run r-000009: expected one that is queued or running, got none"):
        site.add(site.started("r-000009"))


def test_a_sealed_run_neither_fails_nor_is_cancelled() -> None:
    site = stage("sealed")
    with refuses(site, Denied, "got sealed"):
        site.add(RunFailed(run="r-000001", code="x", message=TEXT))
    order = site.order(Cancel, "olga", run="r-000001")
    with refuses(site, Denied, "Run r-000001 is sealed."):
        site.ordered(RunCancelled(policy=site.in_force), order)


def test_a_run_is_cancelled_by_who_ordered_it_or_an_administrator() -> None:
    for name in ("olga", "anna"):
        site = stage("trained")
        site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, name, run="r-000001"))
        run = site.state.runs.get("r-000001")
        assert run is not None and run.status == "cancelled"
    for name in ("ines", "rita", "otto"):
        site = stage("trained")
        with refuses(site, Denied, "This action needs ", ". This action needs"):
            site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, name, run="r-000001"))
    site = stage("trained")
    with refuses(site, Denied, "There is no run r-000009."):
        site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run="r-000009"))


# Sealing.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"files": {"adapter_model.safetensors": b"other"}}, "weights: expected sha256:"),
        ({"adapter": "clauses@2"}, "adapter: expected clauses@1, got clauses@2"),
        ({"adapter": "other@1"}, "adapter: expected clauses@1, got other@1"),
        ({"name": "other"}, "manifest: expected clauses@1"),
        ({"sandbox_probes": {}}, "sandbox_probes: expected the worker's probes, got none"),
        ({"sandbox_probes": {"vsock": "open"}}, "through: vsock"),
    ],
)
def test_what_is_sealed_is_what_the_run_made(fields: dict[str, Any], words: str) -> None:
    site = stage("trained")
    body, documents = site.sealing("r-000001", **fields)
    with refuses(site, Denied, words):
        site.add(body, documents=documents)


def compared(**recipe: Any) -> tuple[LogBuilder, str]:
    """Return a site with a sealed baseline, clauses@1, and a trained run that names it."""
    site = stage("imported")
    site.ordered(
        RunRequested(policy=site.in_force, run="r-000001"), site.train_order(recipe={"purpose": "baseline"} | recipe)
    )
    for event in (site.started, site.checkpointed, site.finished):
        site.add(event("r-000001"))
    body, documents = site.sealing(
        "r-000001", metrics={"adapter": {"accuracy": "0.8", "loss": "0.3", "macro_f1": "0.0", "rows": 9}}
    )
    site.add(body, documents=documents)
    site.ordered(RunRequested(policy=site.in_force, run="r-000002"), site.train_order(recipe={"baseline": "r-000001"}))
    site.add(site.started("r-000002"))
    site.add(site.checkpointed("r-000002"))
    site.add(site.finished("r-000002", seconds="0.5", peak_bytes=1_000_000))
    return site, "r-000002"


def test_what_an_adapter_keeps_of_its_baseline_is_what_the_entries_give() -> None:
    site, run = compared()
    measured = {"accuracy": "0.6", "loss": "0.4", "macro_f1": "0.5", "rows": 9}
    right = {
        "run": "r-000001",
        "method": "qlora",
        "accuracy": "0.8",
        "loss": "0.3",
        "macro_f1": "0.0",
        "kept_accuracy": "0.750000",
        "kept_loss": "0.750000",
        "kept_macro_f1": None,
        "time": "0.333333",
        "memory": "0.333333",
        "same_machine": True,
    }
    for wrong in ({}, {"baseline": right | {"kept_accuracy": "0.990000"}}, {"baseline": right | {"time": "0.1"}}):
        body, documents = site.sealing(run, 2, metrics={"adapter": measured, **wrong})
        with refuses(site, Denied, "metrics, baseline: expected"):
            site.add(body, documents=documents)
    body, documents = site.sealing(run, 2, metrics={"adapter": measured, "baseline": right})
    site.add(body, documents=documents)


def test_a_comparison_that_nobody_ordered_is_refused() -> None:
    site = stage("trained")
    body, documents = site.sealing("r-000001", metrics={"adapter": {}, "baseline": {"run": "r-000001"}})
    with refuses(site, Denied, "metrics, baseline: expected None"):
        site.add(body, documents=documents)


def test_a_baseline_was_sealed_and_evaluated_on_the_same_rows() -> None:
    site, _ = compared()
    wanted = RunRequested(policy=site.in_force, run="r-000003")
    for named, words in (
        ("r-000009", "The recipe compares with run r-000009, which is not a sealed run."),
        ("r-000002", "The recipe compares with run r-000002, which is not a sealed run."),
    ):
        with refuses(site, Denied, words):
            site.ordered(wanted, site.train_order(recipe={"baseline": named}))
    sold, _ = compared(purpose="release")
    with refuses(sold, Denied, "The recipe compares with run r-000001, which made a release of clauses."):
        sold.ordered(wanted, sold.train_order(recipe={"name": "other", "baseline": "r-000001"}))
    row = site.state.runs.get("r-000001")
    assert row is not None
    site.state.runs.put("r-000001", row.model_copy(update={"dataset_digest": NO_DIGEST}))
    with refuses(site, Denied, "The recipe compares with run r-000001, which was evaluated on the base"):
        site.ordered(wanted, site.train_order(recipe={"baseline": "r-000001"}))


def test_a_folder_without_weights_is_no_adapter() -> None:
    site = stage("trained")
    body, documents = site.sealing("r-000001")
    documents["manifest"] = manifest("clauses", 1, {"recipe.json": b"{}"})
    with refuses(site, Denied, "weights: expected", "got None"):
        site.add(body, documents=documents)


def test_a_seal_by_another_key_is_refused() -> None:
    site = stage("trained")
    body, documents = site.sealing("r-000001", key=EcdsaSigner(generate_private_key(SECP256R1())))
    with refuses(site, Tampered, "model signature"):
        site.add(body, documents=documents)


def test_a_seal_over_other_files_is_refused() -> None:
    """The signature of a folder with one file more, beside the manifest of this one."""
    site = stage("trained")
    body, documents = site.sealing("r-000001")
    _, others = site.sealing("r-000001", files={"more.json": b"{}"})
    with refuses(site, Tampered, "model signature, statement"):
        site.add(body, documents=documents | {"signature": others["signature"]})


def test_a_seal_that_is_no_signature_is_refused() -> None:
    site = stage("trained")
    body, documents = site.sealing("r-000001")
    with refuses(site, Tampered, "model signature"):
        site.add(body, documents=documents | {"signature": b"{}"})


def resealed(
    site: LogBuilder, statement: Statement, key: Signer | None = None
) -> tuple[AdapterSealed, dict[str, bytes]]:
    """Return a sealing whose provenance is this statement."""
    body, documents = site.sealing("r-000001")
    envelope = sign_envelope(encode_statement(statement), key or site.adapter_key)
    return body, documents | {"provenance": encode_envelope(envelope)}


def test_provenance_is_the_adapter_keys_own_word() -> None:
    site = stage("trained")
    _, documents = site.sealing("r-000001")
    statement = site.provenance("r-000001", documents["manifest"])
    body, bound = resealed(site, statement, EcdsaSigner(generate_private_key(SECP256R1())))
    with refuses(site, Tampered, "envelope, keyid"):
        site.add(body, documents=bound)
    with refuses(site, BadInput, "envelope, fields"):
        site.add(body, documents=bound | {"provenance": b"{}"})
    body, bound = resealed(site, statement)
    site.add(body, documents=bound)


@pytest.mark.parametrize("name", ["base:smollm2", "dataset:clauses@1", "order"])
def test_provenance_names_the_runs_own_inputs(name: str) -> None:
    site = stage("trained")
    _, documents = site.sealing("r-000001")
    body, bound = resealed(site, site.provenance("r-000001", documents["manifest"], **{name: NO_DIGEST}))
    with refuses(site, Denied, "provenance, dependencies: expected", name):
        site.add(body, documents=bound)


@pytest.mark.parametrize("predicate", [{}, {"buildDefinition": []}, {"buildDefinition": {"resolvedDependencies": 1}}])
def test_provenance_without_inputs_is_refused(predicate: dict[str, Any]) -> None:
    site = stage("trained")
    _, documents = site.sealing("r-000001")
    statement = replace(site.provenance("r-000001", documents["manifest"]), predicate=predicate)
    body, bound = resealed(site, statement)
    with refuses(site, Denied, "provenance, dependencies"):
        site.add(body, documents=bound)


def test_provenance_is_of_this_manifest_and_of_its_kind() -> None:
    site = stage("trained")
    _, documents = site.sealing("r-000001")
    statement = site.provenance("r-000001", documents["manifest"])
    for change, words in (
        ({"subjects": (("clauses", NO_DIGEST),)}, "provenance, subjects"),
        ({"subjects": (("other", statement.subjects[0][1]),)}, "provenance, subjects"),
        ({"predicate_type": "https://slsa.dev/provenance/v2"}, "provenance: expected https://slsa.dev/provenance/v1"),
    ):
        body, bound = resealed(site, replace(statement, **change))
        with refuses(site, Denied, words):
            site.add(body, documents=bound)


def test_versions_of_an_adapter_count_up_over_all_that_were_ever_sealed() -> None:
    site = stage("sealed")
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "anna", **site.on_adapter()))
    run = site.train()
    body, documents = site.sealing(run, 1)
    with refuses(site, Denied, "adapter: expected clauses@2, got clauses@1"):
        site.add(body, documents=documents)
    site.seal(run, 2)
    assert "clauses@2" in site.state.adapters


def test_an_adapter_is_put_in_quarantine_once() -> None:
    site = stage("approved")
    site.add(AdapterQuarantined(adapter="clauses@1", message=TEXT))
    with refuses(site, Denied, "adapter: expected one not in quarantine"):
        site.add(AdapterQuarantined(adapter="clauses@1", message=TEXT))
    with refuses(site, Denied, "adapter: expected one not in quarantine, got clauses@2"):
        site.add(AdapterQuarantined(adapter="clauses@2", message=TEXT))
    with refuses(site, Denied, "The files of adapter clauses@1 have changed on disk, so that entry 28 put"):
        site.activate()


# Reviews.


def test_a_review_is_kept_whole() -> None:
    site = stage("sealed")
    entry = site.review("rita", "privacy")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    (review,) = adapter.reviews
    assert (review.index, review.reviewer, review.review_function, review.unit) == (
        entry.index,
        "rita",
        "privacy",
        "legal",
    )
    assert review.keyid == site.keys["rita"].keyid


@pytest.mark.parametrize(
    ("signer", "field", "fields", "words"),
    [
        ("rita", "model-risk", {}, "rita is reviewer:privacy. This action needs reviewer:model-risk."),
        ("olga", "privacy", {}, "olga is operator. This action needs reviewer:privacy."),
        ("anna", "privacy", {}, "anna is administrator. This action needs reviewer:privacy."),
        ("rita", "privacy", {"unit": "nowhere"}, "nowhere is not an enrolled unit."),
        ("rita", "privacy", {"unit": "olga"}, "olga is not an enrolled unit."),
        ("rita", "privacy", {"version": 2}, "No adapter with the name clauses@2 is sealed."),
        ("rita", "privacy", {"adapter": "other"}, "No adapter with the name other@1 is sealed."),
        ("rita", "privacy", {"manifest": NO_DIGEST}, ". The sealed adapter has the manifest"),
        ("rita", "privacy", {"valid_until": None}, "An approval needs a date"),
        (
            "rita",
            "privacy",
            {"decision": "reject", "valid_until": "2026-01-16T09:30:00.000Z"},
            "The decision reject has no date.",
        ),
        ("rita", "privacy", {"valid_until": "2026-01-15T09:30:00.000Z"}, "It must end after 2026-01-15T09:30"),
        ("rita", "privacy", {"valid_until": "2027-02-15T09:30:00.000Z"}, "It must end after 2026-01-15T09:30"),
        ("rita", "privacy", {"valid_until": "9999-12-31T23:59:59.999Z"}, "It must end after 2026-01-15T09:30"),
    ],
)
def test_a_review_that_breaks_an_invariant_is_refused(signer: str, field: str, fields: Any, words: str) -> None:
    site = stage("sealed")
    version = fields.pop("version", 1)
    order = site.review_order(signer, field, **fields)
    if version != 1:
        order = order.model_copy(update={"version": version})
    with refuses(site, Denied, words):
        site.ordered(ReviewRecorded(policy=site.in_force), order)


def test_who_ordered_the_run_or_imported_the_dataset_does_not_evaluate() -> None:
    site = stage("sealed")
    for name, words in (("olga", "ordered the training run"), ("ines", "imported the training data")):
        grant = site.order(Grant, "anna", principal=name, role="reviewer:privacy")
        site.two(RoleGranted(policy=site.in_force), grant)
        for decision in ("approve", "reject"):
            with refuses(site, Denied, f"{name} {words}"):
                site.review(name, "privacy", decision=decision)


def test_a_revoked_adapter_is_not_reviewed() -> None:
    site = stage("sealed")
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "anna", **site.on_adapter()))
    with refuses(site, Denied, "Adapter clauses@1 was revoked by entry 26. A revocation cannot be undone."):
        site.review("rita", "privacy")


# Revocation.


@pytest.mark.parametrize("name", ["anna", "rita", "raul", "otto"])
def test_an_adapter_is_taken_away_by_one_alone(name: str) -> None:
    site = stage("released")
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, name, **site.on_adapter()))
    with refuses(site, Denied, "Adapter clauses@1 was revoked by entry 29. A revocation cannot be undone."):
        site.add(site.admitted())


@pytest.mark.parametrize("name", ["olga", "ines", "audrey", "legal"])
def test_an_adapter_is_not_taken_away_by_anybody_else(name: str) -> None:
    site = stage("released")
    with refuses(site, Denied, "This action needs administrator or reviewer or release-owner"):
        site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, name, **site.on_adapter()))


def test_a_release_owner_of_another_unit_does_not_revoke() -> None:
    site = stage("released")
    site.enrol("sam", "release-owner:sales")
    with refuses(site, Denied, "sam is release-owner:sales. This action needs administrator or reviewer or"):
        site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "sam", **site.on_adapter()))


def test_an_adapter_is_revoked_once_and_by_its_bytes() -> None:
    site = stage("released")
    wrong = site.order(RevokeAdapter, "anna", **site.on_adapter() | {"manifest": NO_DIGEST})
    with refuses(site, Denied, ". The sealed adapter has the manifest"):
        site.ordered(AdapterRevoked(policy=site.in_force), wrong)
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "anna", **site.on_adapter()))
    with refuses(site, Denied, "Adapter clauses@1 was revoked by entry 29. A revocation cannot be undone."):
        site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "rita", **site.on_adapter()))
