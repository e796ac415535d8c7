"""Every parser that `scripts/fuzz` tries.

`find_parsers` lists the functions of the code that parse bytes, texts or JSON values, so that a test fails when one of
them has no row.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.fuzz import of_domain, of_formats, of_ml, of_programs, of_service, of_signer  # noqa: F401 each adds its rows
from tests.fuzz.seeds import ROOT
from tests.fuzz.target import TARGETS as TARGETS

# --- which parsers there are ------------------------------------------------------------------------------------------

_WILD = frozenset({"bytes", "str", "Any", "object", "BinaryIO"})
"""Types of parameters that an outsider can determine."""
_EVERYWHERE = ("parse", "decode")
_IN_FORMATS_AND_RULES = (*_EVERYWHERE, "open", "read", "verify")
_PACKAGES = (
    *("access", "api", "cli", "client", "config", "domain", "formats", "ml", "signer", "slurm", "store", "web"),
    "workflows",
)
_RULES = ("formats", "domain")
OTHERS = {
    "cli.releases.decisions.parse_conditions": "calls formats.core.timestamp.parse_end for each option",
    "cli.runs.records.parse_run": "compares the beginning of an argument",
    "domain.audit.archives.read_archive_entries": "calls read_archive_entry for each entry",
    "domain.audit.folders.verify_folders": "in verifier.main --folder; its files are manifests and digests",
    "domain.releases.adapters.verify_models": "calls formats.signatures.bundle.verify_model for each key",
    "domain.releases.adapters.verify_signatures": "calls formats.signatures.bundle.verify_model for each key",
    "domain.audit.verify.verify_log": "in verifier.main EXPORT",
    "domain.evaluation.verdict.read_verdict_inputs": "reads files of a sealed folder, which are parsed as items",
    "domain.planning.pace.read_calibration": "measurements of the service's own worker, which it computes with",
    "domain.queries.proofs.verify_entry_proof": "in verifier.main --proof",
    "domain.queries.proofs.verify_text": "compares a text that a record bound; in tests/verifier",
    "domain.queries.review.changes.read_object": "reads an entry that the rules accepted",
    "domain.queries.review.page.read_import": "reads an entry that the rules accepted",
    "domain.queries.review.page.read_version": "reads an entry that the rules accepted",
    "formats.core.fields.parse_record": "in parse_manifest and parse_index, for each of their rows",
    "ml.inference.adapters.parse_adapter": "its weights are read by safetensors, whose headers have a row",
    "web.console.core.page.parse_query": "each page's address in the console's part of scripts/fuzz",
    "web.operations.health.parse_feed_page": "in the operations listener's part of scripts/fuzz",
    "workflows.queries.verification_program.parse_moment": "the service writes this line to a program of its own",
}
"""Functions that `find_parsers` finds and that have no row of their own, with the reason."""


def find_parsers() -> Iterator[str]:
    """Yield every public function that parses what an outsider can determine."""
    for path in sorted((ROOT / "appliance").rglob("*.py")):
        module = path.relative_to(ROOT / "appliance").with_suffix("").as_posix().replace("/", ".")
        package = module.partition(".")[0]
        if package not in (*_PACKAGES, "verifier", "witness"):
            continue
        prefixes = _IN_FORMATS_AND_RULES if package in _RULES else _EVERYWHERE
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith(tuple(f"{one}_" for one in prefixes)):
                types = {part for one in node.args.args if one.annotation for part in _names(one.annotation)}
                if types & _WILD or "Mapping" in types:
                    yield f"{module}.{node.name}"


def _names(annotation: ast.expr) -> Iterator[str]:
    return (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))
