"""The check that the contents of a home belong together: the log, the sealed folders that it names, and the keys."""

from __future__ import annotations

from appliance.domain.core.state import State
from appliance.domain.releases.adapters import verify_signatures
from appliance.errors import NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.artifacts.rows import row_digest, split_digests
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.note import name_key
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.keys import ServiceKeys
from appliance.workflows.data.folders import secret_name
from appliance.workflows.integrity import NamedFolder, list_sealed_folders
from appliance.workflows.releases.exports import read_signatures
from appliance.workflows.serving.serve import DIGEST_KEY

ROWS, ROW_DIGESTS = "rows.jsonl", "row_digests.bin"


def check_folders(artifacts: Artifacts, state: State) -> None:
    """Hash every sealed folder that the log names. Folders of revoked subjects may be missing.

    Raises:
        Tampered: a folder is altered.
        Unavailable: a folder is missing.
    """
    for named in list_sealed_folders(state):
        try:
            artifacts.check(named.digest)
        except Unavailable:
            if not named.is_revoked:
                raise


def check_keys(keys: ServiceKeys, keyring: Keyring, artifacts: Artifacts, state: State) -> None:
    """Check that the keys are those of this log and of its sealed folders.

    All log keys must be there. The adapters' key must have signed the adapters, and the key of a dataset must give the
    digest of its first row. Keys of missing folders are not checked.

    Raises:
        Tampered: a key is missing or does not fit.
    """
    _check_service_keys(keys, keyring, state)
    for named in list_sealed_folders(state):
        try:
            artifacts.path(named.digest)
        except NotFound:
            continue
        try:
            if named.subject.startswith("adapter:"):
                _check_adapter(artifacts, state, named)
            elif named.subject.startswith(("dataset:", "validation-set:")):
                _check_row_key(keyring, artifacts, named.subject, named.digest)
        except NotFound as error:
            raise Tampered(f"{named.subject}: {error.message}") from None


def _check_adapter(artifacts: Artifacts, state: State, named: NamedFolder) -> None:
    manifest = artifacts.read_manifest(named.digest)
    files = {file.path: file.digest for file in manifest.files} | {MANIFEST_PATH: named.digest}
    adapter = state.adapters.require(named.subject.removeprefix("adapter:"))
    verify_signatures(state.site, adapter.index, read_signatures(artifacts, state.site, adapter), files)


def _check_service_keys(keys: ServiceKeys, keyring: Keyring, state: State) -> None:
    site = state.site
    if missing := sorted(set(site.signing_keys(state.last_time)) - set(keys.list_log_keys())):
        raise Tampered(f"keys: expected the log's in {keys.place}, got none of {', '.join(map(name_key, missing))}")
    try:
        if encode_base64(keys.adapter_signer().spki) != site.adapter_key:
            raise Tampered(f"keys: expected the adapters' key that the log names in {keys.place}, got another one")
        second = site.post_quantum_adapter_key
        if second is not None and encode_base64(keys.adapter_signer(post_quantum=True).spki) != second.key:
            raise Tampered(
                f"keys: expected the adapters' post-quantum key that the log names in {keys.place}, got another"
            )
        keyring.read_secret(DIGEST_KEY)
    except NotFound as error:
        raise Tampered(f"keyring: {error.message}") from None


def _check_row_key(keyring: Keyring, artifacts: Artifacts, subject: str, digest: str) -> None:
    """Check that the key of a dataset's rows gives the sealed digest of its first row."""
    key, first = keyring.read_secret(secret_name(digest)), next(iter(artifacts.read_lines(digest, ROWS)), None)
    if first is None:
        return
    row, digests = first.removesuffix(b"\n"), split_digests(artifacts.read(digest, ROW_DIGESTS))
    if digests[0] != row_digest(key, parse_canonical(row)["index"], row):
        raise Tampered(f"keyring: expected the key of {subject}, got one that gives its rows other digests")
