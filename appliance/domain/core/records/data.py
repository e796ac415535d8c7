"""Records of bases, datasets and validation sets, and of their imports."""

from __future__ import annotations

from typing import Any, Literal

from appliance.domain.core.names import Digest, Identifier, Value, VersionedName


class Base(Value):
    """A base model.

    `digest` is that of the manifest over the converted folder; `order` is the import order (source, licence).
    """

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
    """A version of a dataset."""

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
    """A version of a validation set: the site's own rows for evaluation, which are never trained on.

    `file` is the digest of the imported file. Of a `blind` set only digests, scores and counts are disclosed. A `final`
    set evaluates each adapter name once.
    """

    name: str
    version: int
    digest: str
    root: str
    file: str
    dataset_kind: str
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
    """A version of a validation set and the digest of its manifest, as a run's order binds them."""

    validation_set: VersionedName
    digest: Digest


class LocalSet(Value):
    """A set of rows that is in no log (`data/local_sets.py`), and the digest of its files, as an order binds them."""

    set: Identifier
    digest: Digest


class Import(Value):
    """An ordered import; `action` is its kind.

    `held_out_of` is the digest of the file whose rows are held out, or a validation set's own file. An import of a base
    has an empty classification, base, instruction and `held_out_of`.
    """

    order: str
    action: str
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
    dataset_kind: str = ""
    blind: bool = False
    final: bool = False
    """True for a validation set that evaluates each adapter name once."""
