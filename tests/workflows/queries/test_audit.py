"""Exports, verifications and witness requests are of one moment, whatever other processes append."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.api.runs import WorkError
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.records.runs import Replay
from appliance.errors import Conflict
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.export import ParsedExport
from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core.context import Context
from appliance.workflows.core.jobs import ItemsInProgress
from appliance.workflows.core.progress import Progress
from appliance.workflows.queries import log
from appliance.workflows.queries.log import show
from appliance.workflows.queries.work import import_status, replay_status
from scripts.kit.log_builder import stage
from tests.kit.one_process import one_process
from tests.kit.small_log import START, SmallLog, heartbeat


@pytest.fixture
def services(tmp_path: Path) -> Any:
    """Return the site, and two services on one database."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    migrate(open_engine(url))
    site = SmallLog()
    with closing(site.open_ledger(open_engine(url))) as one, closing(site.open_ledger(open_engine(url))) as other:
        one.append(site.first_draft())
        enrolment = site.enrolment("carol")
        one.append(enrolment.pending)
        one.append(enrolment.enrolled)
        other.load()
        yield site, one, other


def _context(ledger: Ledger) -> Context:
    return cast(Context, SimpleNamespace(**one_process(), ledger=ledger, clock=lambda: START))


def test_an_export_of_a_service_that_has_not_seen_anothers_entries_is_whole(
    services: tuple[SmallLog, Ledger, Ledger], tmp_path: Path
) -> None:
    _, one, other = services
    other.append(heartbeat())
    path = tmp_path / "export.tar"
    path.write_bytes(b"".join(log.export(_context(one))))
    with ParsedExport(path.open("rb")) as export:
        assert export.size == claimed_size(export.checkpoint) == 4
        report = verify_log(
            *(export.entries(), export.document, export.disclosures(), export.checkpoint, None),
            now="2026-12-01T00:00:00.000Z",
        )
    assert report.findings == ()
    assert one.state.size == 3, "it had not seen it"


def test_a_proof_that_is_shown_fits_the_checkpoint_beside_it(services: tuple[SmallLog, Ledger, Ledger]) -> None:
    _, one, other = services
    for _ in range(6):
        other.append(heartbeat())
    shown = show(_context(one), 1)
    assert len(shown.proof) == 4 and "\n9\n" in shown.checkpoint


def test_an_export_during_which_a_text_of_it_is_erased_is_refused(
    services: tuple[SmallLog, Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would lack a text that none of its entries erases."""
    _, one, _ = services
    exported = log.export(_context(one))
    (commitment,) = [key for key, _ in one.state.texts.items()]
    text = one.state.texts.get(commitment)
    assert text is not None
    one.state.texts.set(commitment, text._replace(erased=3))
    monkeypatch.setattr(one, "disclosures", lambda _: {})
    with pytest.raises(Conflict, match="got one erased by entry 3; ask again"):
        list(exported)


def test_an_import_is_under_way_until_its_result_is_there() -> None:
    """Its entry comes first: a query in between once returned a finished import without a result."""
    site = stage("imported")
    (order,) = (row.order for row in site.state.imports.values() if row.action == "import-dataset")
    context: Any = SimpleNamespace(
        **one_process(),
        ledger=SimpleNamespace(state=site.state),
        progress=Progress(),
        items_in_progress=ItemsInProgress(),
    )
    assert import_status(context, order, "olga").status == "finished", "by a service before this one"
    assert context.items_in_progress.take(order)
    assert import_status(context, order, "olga").status == "requested"
    context.progress.end(order, result={"dataset": "clauses@1"})
    told = import_status(context, order, "olga")
    assert (told.status, told.result) == ("finished", {"dataset": "clauses@1"})


def test_the_first_row_and_the_labels_of_an_import_are_shown_to_its_signer_alone() -> None:
    site = stage("imported")
    (record,) = (row for row in site.state.imports.values() if row.action == "import-dataset")
    context: Any = SimpleNamespace(
        **one_process(),
        ledger=SimpleNamespace(state=site.state),
        progress=Progress(),
        items_in_progress=ItemsInProgress(),
    )
    result = {"dataset": "clauses@1", "facts": {"rows": 60}, "labels": ["secrecy"], "sample": "A row."}
    context.progress.end(record.order, result=result)
    assert import_status(context, record.order, record.signer).result == result
    told = import_status(context, record.order, "vera").result
    assert told == {"dataset": "clauses@1", "facts": {"rows": 60}}


def test_a_failed_import_or_replay_is_under_way_until_its_reason_is_there() -> None:
    site = stage("imported")
    (record,) = (row for row in site.state.imports.values() if row.action == "import-dataset")
    replay: Any = Replay(
        **{"order": "sha256:1", "run": "r-000001", "from_step": 0, "to_step": 1},
        **{"signer": "vera", "index": 9, "status": "failed"},
    )
    site.state.imports.put(record.order, record.model_copy(update={"status": "failed"}))
    site.state.replays.put(replay.order, replay)
    context: Any = SimpleNamespace(
        ledger=SimpleNamespace(state=site.state), progress=Progress(), items_in_progress=ItemsInProgress()
    )
    error = WorkError(code="disk", message="no space")
    for key, ask in ((record.order, partial(import_status, principal="vera")), (replay.order, replay_status)):
        assert context.items_in_progress.take(key)
        assert (ask(context, key).status, ask(context, key).error) == ("requested", None)
        context.progress.end(key, error=error)
        assert (ask(context, key).status, ask(context, key).error) == ("failed", error)
