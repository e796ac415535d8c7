"""Each test has folders of its own, which are found without a search, and examples have no deadline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

import tests.conftest as conftest


def test_an_example_has_no_deadline() -> None:
    assert settings().deadline is None


def test_each_folder_is_empty_private_and_short(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = [conftest.make_own_folder(tmp_path_factory, "t", "same") for _ in range(3)]
    folders = [tmp_path, Path(os.environ["HOME"]), *made]
    assert len(set(folders)) == 5
    for folder in folders:
        assert folder.is_relative_to(tmp_path_factory.getbasetemp())
        assert (list(folder.iterdir()), folder.stat().st_mode & 0o777) == ([], 0o700)
    assert len(tmp_path.name) <= 30


def test_a_folder_is_made_without_a_look_at_the_others(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands lie beside it, one for each test before."""

    def refuse(*_: object) -> None:
        raise AssertionError("a folder was listed")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    assert conftest.make_own_folder(tmp_path_factory, "t").is_dir()
