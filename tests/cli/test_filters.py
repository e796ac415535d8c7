"""Filters know their words: what was mistyped is an error, what has no entries says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Desk


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--type", "base.importd"), "type: expected a type of entry, got 'base.importd'; did you mean base.imported?"),
        (("--type", "base.imported", "--type", "x"), "type: expected a type of entry, got 'x'"),
        (("--type", "review"), "got 'review'; did you mean review.recorded?"),
        (("--type", "dataset"), "got 'dataset'; did you mean dataset.imported, dataset.revoked?"),
        (("--actor", "riat"), "actor: expected one of anna, audrey,"),
        (("--actor", "riat"), "did you mean rita?"),
        (("--unit", "lgal"), "unit: expected one of legal, sales, got 'lgal'; did you mean legal?"),
        (("--subject", "adapter:clauses@7"), "subject, adapter: expected one that the log names, got 'clauses@7'"),
        (("--subject", "base:smolm2"), "subject, base: expected one of smollm2, got 'smolm2'; did you mean smollm2?"),
        (("--subject", "clauses"), "subject: expected KIND:NAME with a kind of adapter,"),
        (("--outcome", "denid"), "'denid' is not one of"),
        (("--since", "2026-11-02", "--until", "2026-11-01"), "since: expected a time before --until"),
        (("--after", "5", "--before", "5"), "after: expected an entry before --before"),
    ],
)
def test_a_filter_whose_word_is_not_known_is_an_error_and_prints_nothing(
    open_desk: Callable[[str], Desk], words: tuple[str, ...], said: str
) -> None:
    desk = open_desk("imported")
    for form in ((), ("--csv",), ("--json",), ("--last", "3")):
        told = desk.as_("audrey", "ledger", "log", *words, *form)
        assert (told.code, told.out) == (2, "") and said in told.err, told.err


def test_a_unit_that_was_never_enrolled_is_named_as_a_mistake_by_every_list(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    for words in (
        ("review", "list", "--unit", "lgal"),
        ("release", "history", "--unit", "lgal"),
        ("ledger", "could-load", "lgal"),
    ):
        told = desk.as_("audrey", *words)
        assert (told.code, told.out) == (2, "") and "did you mean legal?" in told.err
    told = desk.as_("audrey", "release", "history", "--task", "lables")
    assert (told.code, told.out) == (2, "") and "did you mean labels?" in told.err


def test_a_known_filter_that_fits_nothing_says_so(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    for words in (("--type", "release.activated"), ("--actor", "rita", "--outcome", "denied"), ("--unit", "legal")):
        told = desk.as_("audrey", "ledger", "log", *words, "--until", "2020-01-01")
        assert told.code == 0 and told.err == "no entries\n"
        assert len(told.out.splitlines()) == 1
