"""Bases, datasets and validation sets, and their imports."""

from __future__ import annotations

from typing import Any, Literal

from appliance.domain.core.names import Digest, Identifier, Value, VersionedName


class Base(Value):
    """`digest`: of the manifest over the converted folder; `order`: what was asked for (source, licence)."""

    name: str
    digest: str
    licence: str
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]
    quarantined: int | None = None
    revoked: int | None = None


class Dataset(Value):
    name: str
    version: int
    digest: str
    root: str
    base: str
    base_digest: str
    licence: str
    classification: str
    imported_by: str
    order: str
    instruction: str
    """The commitment of the system message that its rows were rendered with."""
    index: int
    facts: dict[str, Any]
    revoked: int | None = None


class ValidationSet(Value):
    """Rows of the site's own that adapters are judged on and nothing is trained on. `file`: the digest of the file that
    they came in. `blind`: only digests, scores and counts leave it; `final`: it judges each adapter name once."""

    name: str
    version: int
    digest: str
    root: str
    file: str
    task: str
    base: str
    base_digest: str
    licence: str
    classification: str
    blind: bool
    final: bool
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]
    revoked: int | None = None


class BoundSet(Value):
    """A version of a validation set, and the digest of its manifest, as a run's order binds them."""

    validation_set: VersionedName
    digest: Digest


class LocalSet(Value):
    """A set of rows that is in no log (`data/local_sets.py`), and the digest of its files, as a run's order binds
    them."""

    set: Identifier
    digest: Digest


class Import(Value):
    """An import that was ordered; `verb` says of what. A base has no classification, no base it is rendered for, no
    instruction and no `held_out_of`: the digest of the file whose rows are held out, of a validation set its file."""

    order: str
    verb: str
    subject: str
    signer: str
    licence: str
    classification: str
    base: str
    base_digest: str
    instruction: str
    held_out_of: str
    index: int
    status: Literal["requested", "finished", "failed", "cancelled"]
    task: str = ""
    blind: bool = False
    final: bool = False
    """Of a validation set."""
