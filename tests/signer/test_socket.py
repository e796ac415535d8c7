"""The signer's socket: one account, strict requests, and a client that survives its restart."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from appliance.domain.releases.adapters import SLSA_PROVENANCE
from appliance.errors import BadInput, Conflict, NotFound, Unavailable
from appliance.formats.core.acl import ATTRIBUTE, is_private_list
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.signatures.bundle import sign_model, verify_model
from appliance.formats.signatures.dsse import (
    PAYLOAD_TYPE,
    Statement,
    encode_statement,
    pae,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.ml_dsa import is_ml_dsa
from appliance.signer import server as server_module
from appliance.signer.client import SignerKeys
from appliance.signer.operations import Operations
from appliance.signer.server import Server
from appliance.store.ledger.keys import SignerAhead
from tests.kit.signing import make_signer, serving
from tests.kit.small_log import ORIGIN

LEAF, OTHER = hash_leaf(b"first"), hash_leaf(b"other")
AFTER = Frontier.EMPTY.extend([LEAF])[0]


@pytest.fixture
def operations(tmp_path: Path) -> Operations:
    return make_signer(tmp_path / "signer")


@pytest.fixture
def path(operations: Operations, tmp_path: Path) -> Iterator[Path]:
    with serving(operations, tmp_path / "s") as found:
        yield found


@pytest.fixture
def opened(path: Path) -> Iterator[SignerKeys]:
    with closing(SignerKeys(path, ORIGIN)) as keys:
        yield keys


def list_keys(path: Path) -> list[str]:
    """Return the signer's log keys, by a connection that ends."""
    with closing(SignerKeys(path, ORIGIN)) as keys:
        return keys.list_log_keys()


def exchange(path: Path, header: dict[str, Any], blob: bytes = b"") -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        with connection.makefile("rwb") as made:
            stream = cast(BinaryIO, made)
            write_frame(stream, header, blob)
            response = read_frame(stream, max_blob=1 << 20)
        assert response is not None
        return response[0]


def test_the_client_has_every_operation(opened: SignerKeys) -> None:
    keys = opened
    assert keys.find_log() is None and keys.last_signed(ORIGIN) is None
    (vkey,) = keys.list_log_keys()
    assert keys.has_log_key(vkey) and not keys.has_log_key(f"{vkey}x")
    note = keys.sign_checkpoint(ORIGIN, Frontier.EMPTY, [LEAF], AFTER.root(), [vkey])
    assert open_checkpoint(note, vkey).root == AFTER.root()
    assert keys.last_signed(ORIGIN) == (1, AFTER.root(), note)
    assert keys.find_log() == ORIGIN
    assert keys.next_log_key([vkey]) != vkey
    with pytest.raises(SignerAhead):
        keys.sign_checkpoint(ORIGIN, Frontier.EMPTY, [OTHER], Frontier.EMPTY.extend([OTHER])[0].root(), [vkey])
    with pytest.raises(BadInput, match="expected JSON"):
        keys.adapter_signer().sign(pae(PAYLOAD_TYPE, b"anything"))
    adapter, payload = (
        keys.adapter_signer(),
        encode_statement(Statement((("clauses", digest_bytes(b"m")),), SLSA_PROVENANCE, {})),
    )
    verify_envelope(sign_envelope(payload, adapter), adapter.spki)


def test_ml_dsa_signs_checkpoints_and_adapters_through_the_socket(opened: SignerKeys) -> None:
    with pytest.raises(NotFound):
        opened.adapter_signer(post_quantum=True)
    (vkey,) = opened.list_log_keys()
    second = opened.next_log_key([vkey], post_quantum=True)
    note = opened.sign_checkpoint(ORIGIN, Frontier.EMPTY, [LEAF], AFTER.root(), [second, vkey])
    assert open_checkpoint(note, second, vkey).root == AFTER.root()
    made = opened.post_quantum_adapter_key()
    signer, files = opened.adapter_signer(post_quantum=True), {"manifest.json": digest_bytes(b"manifest")}
    assert is_ml_dsa(signer.spki) and signer.spki == made.spki
    verify_model(sign_model(files, "clauses", signer), signer.spki, files)


def test_the_adapters_signer_signs_no_other_bytes(opened: SignerKeys) -> None:
    signer = opened.adapter_signer()
    for data in (b"", b"bytes", b"DSSEv1 4 text 1 x", f"{ORIGIN}\n1\nAAAA\n".encode()):
        with pytest.raises(BadInput):
            signer.sign(data)


def test_another_account_is_refused(operations: Operations, tmp_path: Path) -> None:
    """This process has another user id than the service's."""
    with serving(operations, tmp_path / "s", frozenset({os.getuid() + 1})) as path:
        with pytest.raises(Unavailable, match="answers this account") as refused:
            list_keys(path)
        assert refused.value.code == "signer-unreachable"


def test_the_services_account_alone_can_connect(operations: Operations, tmp_path: Path) -> None:
    """The kernel refuses others, who could fill the queue of connections."""
    service = os.getuid() + 1
    with serving(operations, tmp_path / "s", frozenset({service})) as path:
        rights = os.getxattr(path, ATTRIBUTE)
        assert is_private_list(rights, service)
        assert not is_private_list(rights, service + 1)


def test_a_file_system_without_lists_leaves_the_refusal_to_the_server(
    operations: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(server_module.os, "setxattr", refuse)
    with serving(operations, tmp_path / "s") as path:
        assert path.stat().st_mode & 0o777 == 0o666
        assert list_keys(path)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"operation": "sign"},
        {"operation": 1},
        {"operation": "keys"},
        {"operation": "keys", "origin": 1},
        {"operation": "keys", "origin": ORIGIN, "more": 1},
        {"operation": "create-log-key", "origin": ORIGIN, "used": ["x"] * 200, "post_quantum": False},
        {"operation": "adapter-key", "post_quantum": 1},
        {"operation": "sign-checkpoint", "origin": ORIGIN, "before": -1, "root": "", "keys": []},
        {"operation": "sign-checkpoint", "origin": ORIGIN, "before": 0, "root": "AA==", "keys": []},
    ],
)
def test_a_request_of_another_form_is_refused(path: Path, header: dict[str, Any]) -> None:
    assert exchange(path, header)["error"]["class"] == "BadInput"


def test_leaves_that_are_not_whole_are_refused(path: Path) -> None:
    root = "A" * 43 + "="
    header = {"operation": "sign-checkpoint", "origin": ORIGIN, "before": 0, "root": root, "keys": []}
    assert exchange(path, header, b"x" * 33)["error"]["class"] == "BadInput"


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\x00\x00\x00\x02[]" + bytes(8), b"GET / HTTP/1.1\r\n\r\n"])
def test_bytes_that_are_no_frame_end_the_connection(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(data)
        assert connection.recv(10) == b""
    assert list_keys(path)


def test_a_request_that_does_not_end_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.05)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(b"\x00\x00")
        assert connection.recv(10) == b""


def test_more_connections_than_allowed_are_closed(path: Path) -> None:
    with ExitStack() as stack:
        held = []
        for _ in range(server_module.MOST_CONNECTIONS + 1):
            held.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            held[-1].settimeout(60)
            held[-1].connect(str(path))
        assert held[-1].recv(1) == b""


def test_a_client_continues_after_the_signer_was_restarted(operations: Operations, tmp_path: Path) -> None:
    keys = SignerKeys(tmp_path / "s", ORIGIN)
    for _ in range(2):
        with serving(operations, tmp_path / "s"):
            assert keys.list_log_keys()
            keys.close()
    with pytest.raises(Unavailable, match="systemctl start appliance-signer"):
        keys.list_log_keys()


def test_a_second_signer_does_not_take_the_socket(operations: Operations, path: Path) -> None:
    with pytest.raises(Conflict, match="no other signer"):
        Server(operations, path, frozenset({os.getuid()}))
    assert list_keys(path)


def test_a_socket_that_a_killed_signer_left_is_replaced(operations: Operations, tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    with serving(operations, tmp_path / "s") as path:
        assert list_keys(path)
