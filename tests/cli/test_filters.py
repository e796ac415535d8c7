"""Filters of a search: an unknown word is an error, and a word without entries is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Desk


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--type", "base.importd"), "type: expected a type of entry, got 'base.importd'; did you mean base.imported?"),
        (("--type", "base.imported", "--type", "x"), "type: expected a type of entry, got 'x'"),
        (("--type", "review"), "got 'review'; did you mean review.delegated, review.recorded?"),
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
        ("ledger", "effective-access", "lgal"),
    ):
        told = desk.as_("audrey", *words)
        assert (told.code, told.out) == (2, "") and "did you mean legal?" in told.err
    told = desk.as_("audrey", "release", "history", "--served-model", "lables")
    assert (told.code, told.out) == (2, "") and "did you mean labels?" in told.err


def test_a_known_filter_that_fits_nothing_says_so(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    for words in (("--type", "release.activated"), ("--actor", "rita", "--outcome", "denied"), ("--unit", "legal")):
        told = desk.as_("audrey", "ledger", "log", *words, "--until", "2020-01-01")
        assert told.code == 0 and told.err == "no entries\n"
        assert len(told.out.splitlines()) == 1


NONE = {
    "base list": "Import one with: appliance base import",
    "dataset list": "Import one with: appliance dataset import",
    "validation-set list": "Import one with: appliance validation-set import",
    "import list": "Order one with: appliance base import",
    "run list": "Start one with: appliance run start",
    "review list": "No adapter is sealed. A run that ends well seals one: appliance run list",
    "adapter list": "No adapter is sealed. A run that ends well seals one: appliance run list",
    "finding list": "A reviewer records one with: appliance finding add",
    "delegation list": "A reviewer makes one with: appliance delegation add",
    "release history": "Release an adapter with: appliance release activate",
    "token applications": "A unit enrols one with: appliance token enrol",
    "hold list": "Place one with: appliance hold place",
    "order list": "No order waits for a second administrator.",
    "identity list": "Bind one with: appliance identity bind",
    "witness list": "No witness is in the policy",
    "ledger archives": "archive old records with: appliance ledger archive",
}


def test_a_list_without_rows_has_the_command_that_makes_the_first(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    for words, said in NONE.items():
        told = desk.as_("anna", *words.split())
        assert told.code == 0 and len(told.out.splitlines()) == 1 and said in told.err, (words, told)
        assert desk.as_("anna", *words.split(), "--json").err == "", words


def test_a_filter_that_fits_no_release_is_not_a_history_without_any(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    assert "legal" in desk.as_("anna", "release", "history").out
    told = desk.as_("anna", "release", "history", "--unit", "sales")
    assert (told.code, len(told.out.splitlines()), told.err) == (0, 1, "")


def test_adapters_that_are_all_revoked_are_not_missing(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    assert desk.as_("rita", "adapter", "revoke", "clauses@1", "--reason", "leaks", "--yes").code == 0
    for words in ((), ("--unit", "legal")):
        told = desk.as_("anna", "review", "list", *words)
        assert (told.code, len(told.out.splitlines())) == (0, 1)
        assert told.err == "Every sealed adapter is revoked.\n"


def test_a_name_that_nothing_has_leads_to_the_list(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    for words, said in (
        ("adapter show none@1", "adapter: expected a known one, got 'none@1'; list them with: appliance adapter list"),
        ("run show r-000009", "list them with: appliance run list"),
        ("dataset show none@1", "list them with: appliance dataset list"),
        ("validation-set show none@1", "validation-set: expected a known one, got 'none@1'; list them with: appliance"),
        ("review show none@1", "none is sealed yet, and a run that ends well seals one"),
    ):
        told = desk.as_("anna", *words.split())
        assert told.code == 4 and said in told.err, told
