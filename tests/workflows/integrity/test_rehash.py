"""Sealed folders are hashed again: every change is recorded, however large."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.actions.apply import apply
from appliance.domain.core.entry import MAX_SUBJECTS, Entry, EntryDraft, encode_entry, parse_entry
from appliance.domain.data.imports import ImportRequested
from appliance.errors import Tampered, Unavailable
from appliance.store.ledger.writer import propose
from appliance.workflows.integrity import ReadThrottle, check_all
from scripts.kit.log_builder import LogBuilder, manifest, stage
from tests.kit.one_process import one_process


def with_datasets(count: int) -> LogBuilder:
    """Return a site with so many datasets."""
    site = stage("imported")
    for version in range(2, count + 1):
        requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
        site.add(
            site.dataset_imported(requested, dataset=f"clauses@{version}"),
            documents={"manifest": manifest("clauses", version, {"rows": b"rows"})},
        )
    return site


def context_of(site: LogBuilder, recorded: list[Entry], unreadable: str = "") -> Any:
    """Every dataset has changed on disk; what is appended is checked by the rules."""
    sound = {base.digest for base in site.state.bases.values()}

    def check(digest: str, _pace: ReadThrottle) -> None:
        if digest == unreadable:
            raise Unavailable(f"folder {digest}: expected the disk to work, got Input/output error")
        if digest not in sound:
            raise Tampered(f"folder {digest}: expected the bytes of its manifest, got others")

    def append_all(drafts: Sequence[EntryDraft], guard: None = None) -> list[Any]:
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


def test_a_folder_that_cannot_be_read_is_named_and_those_after_it_are_checked() -> None:
    recorded: list[Entry] = []
    site = with_datasets(2)
    (base,) = site.state.bases.values()
    with pytest.raises(Unavailable, match=f"got 1 unread, first base:{base.name}: folder {base.digest}"):
        check_all(context_of(site, recorded, unreadable=base.digest))
    (entry,) = recorded
    assert (entry.outcome, entry.body["folders"]) == ("failure", 2)
    assert entry.body["changed"] == ["dataset:clauses@1", "dataset:clauses@2"]
    assert entry.body["unread"] == [f"base:{base.name}"]
    assert entry.subjects == ("dataset:clauses@1", "dataset:clauses@2", f"base:{base.name}")


def test_a_check_that_the_services_end_cuts_off_is_not_recorded() -> None:
    recorded: list[Entry] = []
    context = context_of(with_datasets(1), recorded)
    context.closing.set()
    context.artifacts.check = lambda _digest, pace: pace(1)
    with pytest.raises(Unavailable) as caught:
        check_all(context)
    assert (caught.value.code, recorded) == ("closing", [])
