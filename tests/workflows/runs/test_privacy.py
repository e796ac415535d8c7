"""The secret of a private run: made once, compared with what the log binds, and destroyed with what it could replay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.records.runs import Run
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.runs.training import RunFailed
from appliance.errors import NotFound, Tampered
from appliance.store.files.keyring import Keyring
from appliance.workflows.core.context import Context
from appliance.workflows.runs.checkpoints import sweep
from appliance.workflows.runs.steps import begin_secret, bind, read_secret
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.releases.test_privacy import PRIVATE
from tests.kit.one_process import one_process

RUN = "r-000001"


@pytest.fixture
def site() -> LogBuilder:
    """With a private run that waits."""
    site = stage("staffed")
    site.import_base()
    site.import_dataset(facts={"rows": 10, "train_rows": 8})
    site.request_run(recipe=PRIVATE)
    return site


def context_of(site: LogBuilder, folder: Path, days: float = 0) -> Context:
    now = add_seconds(site.state.last_time, round(days * 86_400))
    ledger = SimpleNamespace(state=site.state, entry_bytes=lambda index: site.entries[index])
    context: Any = SimpleNamespace(
        **one_process(),
        ledger=ledger,
        now=lambda state: now,
        keyring=Keyring(folder),
        checkpoints=SimpleNamespace(sweep=lambda kept: None),
    )
    return context


def run_of(site: LogBuilder) -> Run:
    run = site.state.runs.get(RUN)
    assert run is not None
    return run


def begin(site: LogBuilder, folder: Path) -> bytes:
    secret = begin_secret(context_of(site, folder), run_of(site))
    site.add(site.started(RUN, secret=bind(run_of(site), secret)))
    return secret


def test_a_start_that_was_cut_off_before_its_entry_continues_with_the_same_secret(
    site: LogBuilder, tmp_path: Path
) -> None:
    context, run = context_of(site, tmp_path / "keys"), run_of(site)
    first = begin_secret(context, run)
    assert len(first) == 32 and begin_secret(context, run) == first
    assert begin_secret(context_of(site, tmp_path / "other"), run) != first


def test_what_the_log_binds_is_the_only_secret_that_is_used(site: LogBuilder, tmp_path: Path) -> None:
    secret, context = begin(site, tmp_path / "keys"), context_of(site, tmp_path / "keys")
    assert read_secret(context, run_of(site)) == secret
    assert bind(run_of(site), secret) != bind(run_of(site).model_copy(update={"id": "r-000002"}), secret)
    (tmp_path / "keys" / f"noise-{RUN}.secret").write_bytes(bytes(32))
    with pytest.raises(Tampered, match=r"expected the secret that run\.started binds"):
        read_secret(context, run_of(site))
    context.keyring.destroy_secret(f"noise-{RUN}")
    with pytest.raises(NotFound, match="it is destroyed when its retention ends"):
        read_secret(context, run_of(site))


def is_kept(site: LogBuilder, folder: Path, days: float = 0) -> bool:
    sweep(context_of(site, folder, days))
    return (folder / f"noise-{RUN}.secret").exists()


def test_it_is_kept_as_long_as_something_can_be_trained_again_and_destroyed_then(
    site: LogBuilder, tmp_path: Path
) -> None:
    begin(site, tmp_path)
    assert is_kept(site, tmp_path, days=4_000), "under way"
    site.add(site.checkpointed(RUN))
    site.add(RunFailed(run=RUN, code="worker-ended", message=site.text("why")))
    assert is_kept(site, tmp_path, days=29), "it can be resumed"
    assert not is_kept(site, tmp_path, days=31)


def test_that_of_a_run_that_failed_before_its_first_checkpoint_goes_at_once(site: LogBuilder, tmp_path: Path) -> None:
    begin(site, tmp_path)
    site.add(RunFailed(run=RUN, code="worker-ended", message=site.text("why")))
    assert not is_kept(site, tmp_path)


def test_that_of_a_cancelled_run_goes_but_for_a_legal_hold(site: LogBuilder, tmp_path: Path) -> None:
    begin(site, tmp_path)
    site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=RUN))
    site.hold(f"run:{RUN}")
    assert is_kept(site, tmp_path)
    site.lift(f"run:{RUN}")
    assert not is_kept(site, tmp_path)
