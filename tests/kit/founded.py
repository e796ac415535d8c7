"""A founded appliance at a stage of the journey, on disk: a real ledger, real keys, sealed folders of the entries.

Each stage is made once in a process, from the one before it, and copied for each test. The entries of a worker are
appended as the service would append them: the rules decide on each of them.
"""

from __future__ import annotations

import atexit
import base64
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.domain.actions.apply import subjects_of
from appliance.domain.core.entry import Entry, EntryDraft, Event, parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.core.state import State
from appliance.domain.data.imports import ImportBase, ImportRequested, ImportValidationSet
from appliance.domain.data.kinds import ABOUT_FILE, DatasetDescription, encode_about
from appliance.domain.evaluation.items import encode_items
from appliance.domain.governance.policies import assemble_policy
from appliance.domain.releases.adapters import SIGNATURE_FILES, SIGNATURE_ROLES
from appliance.domain.retention import Erase, LogArchived, TextErased
from appliance.domain.runs.training import Train
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.artifacts.rows import row_digest, rows_root
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.export import read_removed
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, generate_ed25519
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, Keyring
from appliance.store.ledger.ledger import Ledger
from appliance.wiring import building
from appliance.workflows.core.context import Context
from appliance.workflows.lifecycle.running import end_jobs
from appliance.workflows.retention import list_removed_texts
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import _STEPS as STEPS_OF_STAGES
from scripts.kit.log_builder import ORIGIN, STEPS, LogBuilder, manifest
from scripts.kit.warm import forked_programs

SHAPE = {"layers": 30, "hidden": 576, "inner": 1536, "heads": 9, "key_heads": 3, "head_size": 64, "words": 49152}
BASE_FACTS = {"dtype": "bfloat16", "parameters": 134_515_008, "shape": {**SHAPE, "tied": True}, "context_length": 2048}
DATASET_FACTS = {
    "train_rows": 400,
    "held_out_rows": 100,
    "max_tokens": 80,
    "lengths": {"quantiles": [20, 40, 60, 80], "shared": 12, "trained": 4},
}
ROWS = [
    {"answer": "B", "index": n, "parts": [["p", " B"]], "split": "train", "text": text}
    for n, text in enumerate(("one", "two", "zwei \N{GREEK SMALL LETTER PI}", "two", "five"))
]
"""Those of the dataset clauses@1 that are trained on."""
HELD_OUT = [
    {
        "answer": "AB"[n % 2],
        "index": len(ROWS) + n,
        "parts": [["p", " B"]],
        "split": "held-out",
        "text": f"held out {n}",
    }
    for n in range(100)
]
ABOUT = DatasetDescription("classification", ("A", "B"), (100, 100))
ROW_KEY = bytes(32)
LINES = [encode_canonical(row) for row in (*ROWS, *HELD_OUT)]
DIGESTS = [row_digest(ROW_KEY, index, line) for index, line in enumerate(LINES)]
EVALUATED = [digest.hex() for digest in DIGESTS[len(ROWS) :]]
"""The rows that an adapter is evaluated on, by their keyed digests."""
FILES = {
    "adapter_model.safetensors": b"weights",
    "metrics.json": b'{"adapter":{"accuracy":"0.900000"},"base":{"accuracy":"0.400000"}}',
    "recipe.json": b'{"rank":8}',
    "steps.jsonl": STEPS,
    "items.jsonl": encode_items(
        make_items([Group(60, adapter=True, base=False), Group(30, True, True), Group(10, False, True)], rows=EVALUATED)
    ),
}
"""Of the adapter clauses@1."""
STAGES = ("initialized", "staffed", "imported", "trained", "sealed", "approved", "released", "serving")

POLICY_FOLDER = Path(__file__).resolve().parents[2] / "policies" / "default"
_DEFAULT = assemble_policy("default", {path.name: path.read_bytes() for path in POLICY_FOLDER.iterdir()})
_COMMITMENT = re.compile(rb"hmac-sha256:[0-9a-f]{64}")


def policy_set(**parameters: Any) -> PolicySet:
    """Return the shipped set with these numbers. The builder's own has no Cedar policies, so no order is allowed."""
    shipped = {name: getattr(_DEFAULT.parameters, name) for name in Parameters.model_fields}
    return _DEFAULT.model_copy(update={"parameters": Parameters(**shipped | parameters)})


def copied_policy(folder: Path, **parameters: Any) -> Path:
    """Copy the shipped set's folder with other parameters. Its name is the set's."""
    shutil.copytree(POLICY_FOLDER, folder, dirs_exist_ok=True)
    (folder / "parameters.json").write_text(json.dumps(parameters))
    return folder


class FoundedSite(LogBuilder):
    """The builder's people and orders over a ledger on disk: `add` appends there, and everything is read from there."""

    def __init__(self, home: Path, ledger: Ledger, keys: dict[str, Any], policy: PolicySet, count: int = 0) -> None:
        keyring = Keyring(home / "keys")
        log, adapter_key = keyring.open_signer(LOG_KEY), keyring.open_signer(ADAPTER_KEY)
        assert isinstance(log, Ed25519Signer) and isinstance(adapter_key, EcdsaSigner)
        self.home, self.ledger, self.keyring = home, ledger, keyring
        self.log, self.adapter_key = log, adapter_key
        self.log_signers = {vkey_of(ORIGIN, log): log}
        self.keys, self.policy = dict(keys), policy
        self.artifacts = Artifacts(home)
        self._texts: dict[str, Disclosure] = {}
        self.items = {digest_bytes(FILES["items.jsonl"]): FILES["items.jsonl"]}
        self._count = count

    # What the builder keeps in memory lies in the ledger.

    @property  # type: ignore[override]
    def state(self) -> State:
        return self.ledger.state

    @property  # type: ignore[override]
    def now(self) -> str:
        return max(encode_time(datetime.now(UTC)), self.state.last_time)

    @property  # type: ignore[override]
    def entries(self) -> list[bytes]:
        return list(self.ledger.entries())

    @property  # type: ignore[override]
    def documents(self) -> dict[str, bytes]:
        kept = (data for data in self.entries if read_removed(data) is None)
        digests = {digest for data in kept for digest in parse_entry(data).documents.values()}
        return {digest: self.ledger.document(digest) for digest in digests}

    @property  # type: ignore[override]
    def disclosures(self) -> list[Disclosure]:
        return self.ledger.signed_texts()[1]

    def text(self, text: str) -> str:
        self._count += 1
        disclosure = disclose(text, digest_bytes(b"salt %d" % self._count)[7:39].encode())
        self._texts[disclosure.commitment] = disclosure
        return disclosure.commitment

    def add(
        self,
        event: Event,
        /,
        documents: Mapping[str, bytes] | None = None,
        signed: tuple[tuple[str, Order], ...] = (),
        **changes: Any,
    ) -> Entry:
        bound, last = dict(documents or {}), signed[-1][1] if signed else None
        erased: tuple[str, ...] = ()
        if isinstance(event, TextErased) and isinstance(last, Erase):
            erased = (last.commitment,)
        elif isinstance(event, LogArchived):
            erased = list_removed_texts(self.state, bound["removed"])
        draft = EntryDraft(
            type=event.type,
            actor=changes.pop("actor", signed[0][1].signer if signed else event.actor or "service"),
            source="unix",
            subjects=subjects_of(event, signed),
            outcome=event.outcomes[0],
            documents=bound,
            body=event,
            disclosures=tuple(self._opened(event, bound)),
            erased=erased,
            **changes,
        )
        return self.ledger.append(draft).entry

    def _opened(self, event: Event, documents: Mapping[str, bytes]) -> list[Disclosure]:
        """Return the texts behind the commitments that the entry or its orders have for the first time."""
        sources = [encode_canonical(event.model_dump(mode="json"))]
        for data in documents.values():
            found = re.search(rb'"payload":"([^"]+)"', data)
            sources.append(base64.b64decode(found[1]) if found else b"")
        named = [found.decode() for data in sources for found in _COMMITMENT.findall(data)]
        return [self._texts.pop(commitment) for commitment in dict.fromkeys(named) if commitment in self._texts]

    # What is made has its folder.

    def import_base(self, name: str = "smollm2", signer: str = "ines") -> Entry:
        order = self.order(
            ImportBase, signer, base=name, format="gguf", source=digest_bytes(b"gguf"), licence="Apache-2.0"
        )
        requested = self.ordered(ImportRequested(policy=self.in_force), order)
        listed = self.lay(manifest(name, 1, {"w": b"base"}), {"w": b"base"})
        return self.add(self.base_imported(requested, name, facts=BASE_FACTS), documents={"manifest": listed})

    def import_dataset(self, version: int = 1, **fields: Any) -> Entry:
        requested = self.ordered(ImportRequested(policy=self.in_force), self.dataset_order(**fields))
        files = {
            "rows.jsonl": b"".join(line + b"\n" for line in LINES),
            "row_digests.bin": b"".join(DIGESTS),
            ABOUT_FILE: encode_about(ABOUT),
        }
        listed = self.lay(manifest("clauses", version, files), files)
        self.keyring.keep_secret(f"dataset-{digest_bytes(listed).removeprefix('sha256:')}", ROW_KEY)
        root = f"sha256:{rows_root(DIGESTS).hex()}"
        return self.add(
            self.dataset_imported(
                requested, dataset=f"clauses@{version}", root=root, facts={**DATASET_FACTS, "rows": len(LINES)}
            ),
            documents={"manifest": listed},
        )

    def lay_set(self, order: ImportValidationSet, version: int) -> tuple[bytes, dict[str, Any]]:
        """Of the rows that the dataset holds out."""
        held_out, digests = LINES[len(ROWS) :], DIGESTS[len(ROWS) :]
        files = {
            "rows.jsonl": b"".join(line + b"\n" for line in held_out),
            "row_digests.bin": b"".join(digests),
            ABOUT_FILE: encode_about(ABOUT),
        }
        listed = self.lay(manifest(order.validation_set, version, files), files)
        self.keyring.keep_secret(f"dataset-{digest_bytes(listed).removeprefix('sha256:')}", ROW_KEY)
        facts = {"dataset_kind": order.dataset_kind, "rows": len(held_out), "max_tokens": 80}
        return listed, {"root": f"sha256:{rows_root(digests).hex()}", "facts": facts}

    def train_order(self, signer: str = "olga", recipe: Mapping[str, Any] | None = None, **fields: Any) -> Train:
        """Long enough for the longest row of the dataset."""
        return super().train_order(signer, {"max_length": 128, **(recipe or {})}, **fields)

    def seal(self, run: str = "r-000001", version: int = 1, **fields: Any) -> Entry:
        body, documents = self.sealing(run, version, **{"files": FILES, "items": FILES["items.jsonl"], **fields})
        beside = {f"{role}.json": documents[role] for role in ("gates", "verdict") if role in documents}
        pairs = zip(SIGNATURE_FILES, SIGNATURE_ROLES, strict=True)
        signatures = {file: documents[role] for file, role in pairs if role in documents}
        self.lay(documents["manifest"], fields.get("files", FILES) | fields.get("sets", {}) | beside, signatures)
        return self.add(body, documents=documents)

    def lay(self, listed: bytes, files: Mapping[str, bytes], beside: Mapping[str, bytes] | None = None) -> bytes:
        """Seals a folder of these files under the manifest, which it gives back."""
        with self.artifacts.staging() as staging:
            for path, data in {**files, MANIFEST_PATH: listed}.items():
                (staging / path).write_bytes(data)
            self.artifacts.seal(staging, digest_bytes(listed), beside)
        return listed


@contextmanager
def context_of(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[Context]:
    """Yield the context of a service over this home, as wiring makes it; the code is described once in a process, and
    its programs are forks.

    Its jobs have ended afterwards, so that the home can be removed.
    """
    with pytest.MonkeyPatch.context() as patch, forked_programs():
        patch.setattr(building, "describe_code", _code)
        patch.setattr(building, "describe_host", _host)
        with wiring.service(load_settings(home, environment or {})) as context:
            try:
                yield context
            finally:
                end_jobs(context, 60)
            assert not any(jobs.busy for jobs in context.jobs), "a job still uses the home"


_code, _host = cache(building.describe_code), cache(building.describe_host)


class Template:
    """A home at a stage of the journey, which no service runs on; and the keys of its people."""

    def __init__(self, home: Path, keys: dict[str, Any], count: int) -> None:
        self.home, self.keys, self.count = home, keys, count

    def copy(self, home: Path) -> None:
        shutil.copytree(self.home, home, symlinks=True, dirs_exist_ok=True)

    def site(self, home: Path, ledger: Ledger) -> FoundedSite:
        return FoundedSite(home, ledger, self.keys, _DEFAULT, self.count)


@cache
def template(stage: str) -> Template:
    """Made once in a process."""
    home = _folder() / stage
    if stage == STAGES[0]:
        keys: dict[str, Any] = {name: generate_ed25519() for name in ("anna", "ben")}
        people = [wiring.Person(name, key.spki) for name, key in keys.items()]
        settings = load_settings(home, {})
        wiring.init(settings, people, origin=ORIGIN, single_administrator=False, policy=encode_value(_DEFAULT))
        return Template(home, keys, 0)
    before = template(STAGES[STAGES.index(stage) - 1])
    before.copy(home)
    with context_of(home) as context:
        site = before.site(home, context.ledger)
        STEPS_OF_STAGES[stage](site)
        context.ledger.seal_snapshot(1)
    return Template(home, site.keys, site._count)


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ap-stages-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
