"""Sealed folders are hashed again: whatever has changed is recorded, however much it is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from appliance.domain.core.entry import MAX_SUBJECTS, Draft, Entry, encode_entry, parse_entry
from appliance.domain.data.imports import ImportRequested
from appliance.domain.rulebook.apply import apply
from appliance.errors import Tampered
from appliance.store.ledger.staging import propose
from appliance.workflows.integrity.rehash import Pace, check_all
from scripts.kit.log_builder import LogBuilder, manifest, stage
from tests.kit.one_process import one_process


def with_datasets(count: int) -> LogBuilder:
    """A site with so many datasets."""
    site = stage("imported")
    for version in range(2, count + 1):
        requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
        site.add(
            site.dataset_imported(requested, dataset=f"clauses@{version}"),
            documents={"manifest": manifest("clauses", version, {"rows": b"rows"})},
        )
    return site


def context_of(site: LogBuilder, recorded: list[Entry]) -> Any:
    """Every dataset has changed on disk; what is appended stands under the rules, or is refused."""
    sound = {base.digest for base in site.state.bases.values()}

    def check(digest: str, _pace: Pace) -> None:
        if digest not in sound:
            raise Tampered(f"folder {digest}: expected the bytes of its manifest, got others")

    def append_all(drafts: Sequence[Draft], guard: None = None) -> list[Any]:
        (draft,) = drafts
        entry = propose(draft, site.state, site.now)
        apply(site.state, entry, draft.documents)
        return [SimpleNamespace(entry=parse_entry(encode_entry(entry)))]

    return SimpleNamespace(
        **one_process(),
        closing=threading.Event(),
        artifacts=SimpleNamespace(check=check),
        ledger=SimpleNamespace(state=site.state, append_all=append_all),
        appended=lambda entry, _body: recorded.append(entry),
    )


def test_more_changed_folders_than_an_entry_has_subjects_are_recorded_all_the_same() -> None:
    recorded: list[Entry] = []
    changed = check_all(context_of(with_datasets(40), recorded))
    assert changed == tuple(f"dataset:clauses@{version}" for version in range(1, 41))
    (entry,) = recorded
    assert (entry.type, entry.outcome) == ("artifacts.checked", "failure")
    assert entry.body["changed"] == list(changed)
    assert entry.subjects == changed[:MAX_SUBJECTS]
    assert MAX_SUBJECTS == 32, "the format says so"
