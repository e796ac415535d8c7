"""A manifest names every file of a folder in one spelling, and no name that some file system reads otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, encode_manifest, parse_manifest
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes

DIGEST = f"sha256:{'ab' * 32}"


def file(path: str, size: int = 1) -> ManifestFile:
    return ManifestFile(path, size, DIGEST)


GOOD = Manifest("clauses", 1, (file("adapter_config.json"), file("adapter_model.safetensors", 9_800_000)))


def test_a_manifest_comes_back_and_its_digest_is_that_of_its_bytes() -> None:
    data = encode_manifest(GOOD)
    assert parse_manifest(data) == GOOD
    assert GOOD.digest == digest_bytes(data)


def test_a_manifest_has_these_members() -> None:
    assert json.loads(encode_manifest(GOOD)) == {
        "_type": "urn:appliance:manifest:v1",
        "name": "clauses",
        "version": 1,
        "files": [
            {"path": "adapter_config.json", "size": 1, "digest": DIGEST},
            {"path": "adapter_model.safetensors", "size": 9_800_000, "digest": DIGEST},
        ],
    }


@pytest.mark.parametrize("path", ["a", "a.b", "tokenizer/vocab.json", "A_b-c.D", "0", "a..b", "1/2/3/4/5/6/7/8"])
def test_plain_relative_paths_are_accepted(path: str) -> None:
    assert file(path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        "a/../b",
        "./a",
        ".git/config",
        ".hidden",
        "a/.b",
        "-rf",
        "~",
        "a b",
        "a\\b",
        "C:a",
        "a\0",
        "a\n",
        "é",
        "a\u202eb",
        "x" * 128,
        "1/2/3/4/5/6/7/8/9",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(BadInput, match="path"):
        file(path)


@pytest.mark.parametrize(
    "files",
    [
        (),
        (file("b"), file("a")),
        (file("a"), file("a")),
        (file("A"), file("a")),
        (file("a"), file("a/b")),
        (file("A"), file("a/b")),
        (file(MANIFEST_PATH),),
        (file("Manifest.JSON"),),
    ],
)
def test_unsorted_double_and_entangled_paths_are_refused(files: tuple[ManifestFile, ...]) -> None:
    with pytest.raises(BadInput):
        Manifest("clauses", 1, files)


def test_a_manifest_deeper_in_the_folder_is_a_file_like_others() -> None:
    Manifest("clauses", 1, (file("a/manifest.json"),))


@pytest.mark.parametrize(
    ("name", "version"), [("Clauses", 1), ("", 1), ("a-", 1), ("a" * 64, 1), ("a", 0), ("a", True)]
)
def test_name_and_version_follow_the_rules(name: str, version: int) -> None:
    with pytest.raises(BadInput):
        Manifest(name, version, GOOD.files)


@pytest.mark.parametrize(("size", "digest"), [(-1, DIGEST), (True, DIGEST), (2**53, DIGEST), (1, "ab" * 32)])
def test_size_and_digest_follow_the_rules(size: int, digest: str) -> None:
    with pytest.raises(BadInput):
        ManifestFile("a", size, digest)


def test_other_members_are_refused() -> None:
    good = json.loads(encode_manifest(GOOD))
    first = good["files"][0]
    variants: list[Any] = [
        [],
        good | {"_type": "urn:appliance:manifest:v2"},
        good | {"extra": 1},
        {name: value for name, value in good.items() if name != "version"},
        good | {"name": 1},
        good | {"version": "1"},
        good | {"version": True},
        good | {"files": {}},
        good | {"files": [first | {"mode": 1}]},
        good | {"files": [first | {"size": "1"}]},
        good | {"files": [first | {"size": True}]},
        good | {"files": [first | {"path": 1}]},
        good | {"files": [first | {"digest": None}]},
        good | {"files": good["files"][::-1]},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_manifest(encode_canonical(variant))
