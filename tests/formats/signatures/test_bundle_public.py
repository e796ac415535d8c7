"""A folder signed by us is accepted by the public `model_signing verify key`, and refused once a byte changed.

The command brings its own libraries, so it lives in its own environment: `.venv-model-signing` in the repository's
folder (pip install model-signing pyopenssl), or anywhere on the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.formats.core.digest import digest_file
from appliance.formats.signatures.bundle import sign_model, verify_model
from appliance.formats.signatures.keys import EcdsaSigner, encode_spki_pem

OWN = Path(__file__).resolve().parents[3] / ".venv-model-signing/bin/model_signing"
COMMAND = str(OWN) if OWN.exists() else shutil.which("model_signing")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(COMMAND is None, reason="the public command model_signing is not installed"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "clauses-1"
    (root / "sub").mkdir(parents=True)
    for path in ("adapter.safetensors", "manifest.json", "sub/b.bin", "sub-x"):
        (root / path).write_text(path)
    return root


def digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): digest_file(path) for path in root.rglob("*") if path.is_file()}


def verify(root: Path, spki: bytes, bundle: bytes) -> subprocess.CompletedProcess[str]:
    signature, key = root.parent / "model.sig", root.parent / "key.pem"
    signature.write_bytes(bundle)
    key.write_bytes(encode_spki_pem(spki))
    command = [str(COMMAND), "verify", "key", str(root), "--signature", str(signature), "--public_key", str(key)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["p256", "p384"])
def test_the_public_command_accepts_our_signature(kind: str, folder: Path, request: pytest.FixtureRequest) -> None:
    signer = request.getfixturevalue(kind)
    bundle = sign_model(digests(folder), folder.name, signer)
    verify_model(bundle, signer.spki, digests(folder))
    result = verify(folder, signer.spki, bundle)
    assert result.returncode == 0, result.stderr
    assert "Verification succeeded" in result.stdout


def test_the_public_command_refuses_what_changed(folder: Path, p256: EcdsaSigner, other_p256: EcdsaSigner) -> None:
    bundle = sign_model(digests(folder), folder.name, p256)
    assert verify(folder, other_p256.spki, bundle).returncode != 0
    (folder / "more").write_text("added")
    assert verify(folder, p256.spki, bundle).returncode != 0
    (folder / "more").unlink()
    (folder / "sub-x").write_text("changed")
    assert verify(folder, p256.spki, bundle).returncode != 0
    (folder / "sub-x").write_text("sub-x")
    assert verify(folder, p256.spki, bundle).returncode == 0
