"""A home with adapters that were signed, reviewed and released, but not trained.

Base, dataset, runs, seals, reviews and releases are entries that the rules accepted one by one. The bytes of the
adapters are made otherwise. Admissions, loads and answers go through the unchanged service.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance import wiring
from appliance.domain.core.entry import Ordered
from appliance.domain.core.names import add_seconds, versioned
from appliance.domain.core.order import Order
from appliance.domain.data.artifacts import BaseImported, DatasetImported
from appliance.domain.data.imports import ImportBase, ImportDataset, ImportRequested
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.releases.activations import Activate, ReleaseActivated
from appliance.domain.releases.reviews import ReviewAdapter, ReviewRecorded
from appliance.domain.runs.conditions import RunCheckpointed
from appliance.domain.runs.training import RunFinished, RunRequested, RunStarted, Train
from appliance.formats.artifacts.rows import row_digest
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.formats.signatures.dsse import encode_envelope
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append
from appliance.workflows.data.folders import seal_folder, secret_name
from appliance.workflows.runs.evaluate import EvaluationResult, seal
from scripts.kit.appliance import Appliance
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LAYERS, MACHINE, RECIPE, SANDBOX_PROBES, STEPS

BASE, DATASET, UNITS = "smollm2", "clauses", tuple(f"unit-{number}" for number in range(8))
OWNER = "otto"

_ROW_KEY = bytes(range(32))
_ROW = b'{"index":0,"split":"held-out"}'
(_ITEM,) = make_items([Group(1, adapter=True, base=False)], rows=[row_digest(_ROW_KEY, 0, _ROW).hex()])
"""Items of the one row that the adapters are evaluated on."""


def enrol(site: Appliance) -> None:
    """Enrol eight units and their release owner, in addition to the people of a test site."""
    for unit in UNITS:
        site.enrol(unit, "unit")
    site.enrol(OWNER, *(f"release-owner:{unit}" for unit in UNITS))


class Home:
    """A home whose service is stopped. It appends entries to the home's ledger."""

    def __init__(self, site: Appliance, context: Context) -> None:
        self.context = context
        self._site = site

    def import_base(self, folder: Path) -> None:
        source = digest_bytes(b"given")
        requested = self._order(
            ImportBase(base=BASE, format="safetensors", source=source, licence="Apache-2.0", **self._terms("olga"))
        )
        facts = {
            "tokenizer_digest": digest_file(folder / "tokenizer.json"),
            "chat_template_digest": digest_file(folder / "chat_template.jinja"),
        }
        with self._staged(folder) as staging:
            manifest = seal_folder(self.context, staging, BASE, 1)
        body = BaseImported(order=requested, base=BASE, facts=facts, sandbox_probes=SANDBOX_PROBES)
        append(self.context, body, documents={"manifest": manifest})

    def import_dataset(self) -> None:
        told, owner = disclose("", os.urandom(32)), disclose("Legal", os.urandom(32))
        order = ImportDataset(
            dataset=DATASET,
            dataset_kind="classification",
            format="csv",
            columns={},
            labels=(),
            file=digest_bytes(b"rows"),
            instruction=told.commitment,
            base=BASE,
            base_digest=self._base_digest,
            seed=1,
            held_out="0.25",
            owner=owner.commitment,
            licence="CC0-1.0",
            classification="internal",
            **self._terms("olga"),
        )
        requested = self._order(order, told, owner)
        with self.context.artifacts.staging() as staging:
            (staging / "rows.jsonl").write_bytes(_ROW + b"\n")
            (staging / "row_digests.bin").write_bytes(bytes.fromhex(_ITEM.row))
            manifest = seal_folder(self.context, staging, DATASET, 1)
        body = DatasetImported(
            order=requested,
            dataset=versioned(DATASET, 1),
            base=BASE,
            root=digest_bytes(b"root"),
            facts={"rows": 1},
            sandbox_probes=SANDBOX_PROBES,
        )
        self.context.keyring.keep_secret(secret_name(digest_bytes(manifest)), _ROW_KEY)
        append(self.context, body, documents={"manifest": manifest})

    def seal(self, folder: Path, name: str, fingerprint: dict[str, Any]) -> str:
        """Seal an adapter of these bytes under the name. Return its name and version."""
        recipe = ResolvedRecipe(**RECIPE | {"name": name, "base": BASE, "dataset": versioned(DATASET, 1)})
        dataset = self.context.ledger.state.datasets.get(recipe.dataset)
        assert dataset is not None
        order = Train(
            recipe=recipe, base_digest=self._base_digest, dataset_digest=dataset.digest, **self._terms("olga")
        )
        run = f"r-{len(self.context.ledger.state.runs) + 1:06d}"
        self._order(order, run=run)
        self._train(run, folder)
        row = self.context.ledger.state.runs.get(run)
        assert row is not None
        found = {"base": {}, "adapter": {}, "sets": {}, "logit_fingerprint": fingerprint}
        evaluation = EvaluationResult(found, SANDBOX_PROBES, {ITEMS_FILE: encode_items([_ITEM])}, None)
        with self._staged(folder) as staging:
            (staging / "steps.jsonl").write_bytes(STEPS)
            return seal(self.context, row, order, staging, {"device": "cpu", "record": row.record}, evaluation)

    def _train(self, run: str, folder: Path) -> None:
        append(
            self.context,
            RunStarted(
                run=run, layers=LAYERS, accepted_missing=(), sandbox_probes=SANDBOX_PROBES, job=None, secret=None
            ),
        )
        body = RunCheckpointed(run=run, step=2, checkpoint=digest_bytes(run.encode()), seconds="1.0", machine=MACHINE)
        append(self.context, body)
        finished = RunFinished(
            run=run,
            weights=digest_file(folder / "adapter_model.safetensors"),
            weights_step=2,
            record=digest_bytes(STEPS),
            validation=(),
            planned_steps=2,
            steps=2,
            trained_tokens=10,
            seconds="1.5",
            peak_bytes=3_000_000,
            final_loss="0.25",
        )
        append(self.context, finished)

    def approve(self, adapter: str, unit: str) -> None:
        for who in ("rita", "rob"):
            meaning = disclose("I reviewed it and approve.", os.urandom(32))
            order = ReviewAdapter(
                decision="approve",
                unit=unit,
                review_function={"rita": "privacy", "rob": "model-risk"}[who],
                meaning=meaning.commitment,
                valid_until=add_seconds(self._site.now(), 30 * 86_400),
                request=None,
                conditions=None,
                on_behalf_of=None,
                opened=(),
                **self.on(adapter),
                **self._terms(who),
            )
            self._order(order, meaning)

    def release(self, adapter: str, unit: str, served_model: str) -> None:
        self._order(
            Activate(
                unit=unit, served_model=served_model, adds_instruction=False, **self.on(adapter), **self._terms(OWNER)
            )
        )

    def on(self, adapter: str) -> dict[str, Any]:
        row = self.context.ledger.state.adapters.get(adapter)
        assert row is not None
        return {"adapter": row.name, "version": row.version, "manifest": row.manifest}

    @property
    def _base_digest(self) -> str:
        base = self.context.ledger.state.bases.get(BASE)
        assert base is not None
        return base.digest

    def _terms(self, who: str) -> dict[str, Any]:
        return self._site.terms(who)

    def _order(self, order: Order, *texts: Disclosure, run: str | None = None) -> str:
        """Sign an order as its person, record it as the service does, and return its digest."""
        envelope = self._site.sign(order)
        policy = self.context.ledger.state.site.policy
        kinds: dict[str, type[Ordered]] = {
            "import-base": ImportRequested,
            "import-dataset": ImportRequested,
            "review": ReviewRecorded,
            "activate": ReleaseActivated,
        }
        body = RunRequested(policy=policy, run=run) if run else kinds[order.action](policy=policy)
        append(
            self.context,
            body,
            actor=order.signer,
            documents={"order": encode_envelope(envelope)},
            orders=((envelope.pae_digest, order),),
            disclosures=texts,
        )
        return envelope.pae_digest

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        with self.context.artifacts.staging() as staging:
            for path in folder.iterdir():
                shutil.copyfile(path, staging / path.name)
            yield staging


@contextmanager
def opened(site: Appliance) -> Iterator[Home]:
    """Open the ledger of a stopped site."""
    assert site.service is None
    with wiring.service(site.settings) as context:
        yield Home(site, context)
