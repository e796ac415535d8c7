"""`scripts/gpu` without a card: its message, its dry run, and the folder that it packs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.gpu_machine.pack import LEFT_OUT, choose_libraries, find_names, strip_libraries

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = [
    f"bitsandbytes/libbitsandbytes_{name}.so"
    for name in ("cpu", "cuda118", "cuda121", "cuda124", "cuda128", "cuda130", "rocm72", "xpu2025")
]


@pytest.mark.thorough
def test_without_a_card_it_says_so_in_one_line_and_exits_with_7() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    command = [str(ROOT / "scripts" / "gpu"), "tests"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(("gpu: error: torch: expected one built for CUDA", "gpu: no card: torch"))


@pytest.mark.outside
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_dry_run_passes_its_tests_and_fills_both_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.gpu_machine", "--dry-run", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    for what, measures in (("train", 3), ("serve", 3)):
        found = json.loads((tmp_path / f"gpu-{what}-tiny.json").read_text())
        assert (found["bench"], found["device"], found["card"]) == (what, "cpu", None)
        assert len(found["rows"]) == measures
        assert all(row["ours"] > 0 and row["theirs"] > 0 for row in found["rows"])
    assert done.stdout.count("no card, a dry run on the CPU") == 2


@pytest.mark.parametrize(
    ("cuda", "chosen"),
    [("12.8", "cuda128"), ("12.9", "cuda128"), ("12.6", "cuda124"), ("12.0", "cuda121"), ("13.2", "cuda130")],
)
def test_a_pack_has_the_library_that_bitsandbytes_would_choose(cuda: str, chosen: str) -> None:
    assert choose_libraries(LIBRARIES, cuda) == {LIBRARIES[0], f"bitsandbytes/libbitsandbytes_{chosen}.so"}


def test_a_pack_without_a_version_has_every_nvidia_library_and_an_unknown_version_is_refused() -> None:
    assert choose_libraries(LIBRARIES, None) == set(LIBRARIES[:6])
    with pytest.raises(SystemExit, match=r"--cuda: expected a version .* got 14\.0"):
        choose_libraries(LIBRARIES, "14.0")


def test_a_stripped_wheel_names_what_it_holds(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = [*LIBRARIES, "bitsandbytes/__init__.py"]
    record = "bitsandbytes-1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in names:
            made.writestr(name, name)
        made.writestr(record, "".join(f"{name},sha256=x,1\n" for name in [*names, record]))
    strip_libraries(wheel, "12.8")
    kept = [LIBRARIES[0], LIBRARIES[4], "bitsandbytes/__init__.py", record]
    with zipfile.ZipFile(wheel) as stripped:
        assert stripped.namelist() == kept
        assert [line.split(",")[0] for line in stripped.read(record).decode().splitlines()] == kept
        assert stripped.read(LIBRARIES[4]).decode() == LIBRARIES[4]


def test_a_pack_has_what_the_appliance_needs_and_leaves_torch_to_the_machine() -> None:
    names = set(find_names())
    assert {"bitsandbytes", "transformers", "peft", "pydantic", "cryptography", "sqlalchemy", "pytest"} <= names
    assert not names & {*LEFT_OUT, "triton", "sympy"}
    assert not [name for name in names if name.startswith("nvidia-")]
