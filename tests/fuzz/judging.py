"""The checks of a parser's behaviour on an input, and the corpus of failing or path-extending inputs."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError
from tests.fuzz.target import Target

SECONDS = 2.0
"""Most processor seconds of a call, for an input of up to a mebibyte."""
CORPUS = Path(__file__).parent / "corpus"
"""Inputs that failed once. The normal suite tries them again."""
_CODE = "/appliance/"


@dataclass(frozen=True)
class Outcome:
    """The end of a call: `way` is where the parser accepted or refused, `problem` what it must not do, or nothing."""

    way: str
    problem: str = ""


def judge(target: Target, data: bytes) -> Outcome:
    """Call a parser. Only its own errors may leave it, within its time."""
    begun = time.thread_time()
    try:
        target.parse(data)
        way, problem = "accepted", ""
    except (ApplianceError, *target.raises) as error:
        way, problem = f"{type(error).__name__} {_locate(error)}", ""
    except Exception as error:  # noqa: BLE001 what is looked for
        way, problem = f"{type(error).__name__} {_locate(error)}", f"{type(error).__name__}: {error!s:.300}"
    seconds = time.thread_time() - begun
    if not problem and seconds > SECONDS:
        problem = f"it took {seconds:.1f} s of the processor for {len(data)} bytes"
    return Outcome(way, problem)


def _locate(error: BaseException) -> str:
    """Return file and line of the last call in the project's own code."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if _CODE in one.filename]
    return f"{frames[-1].filename.rpartition(_CODE)[2]}:{frames[-1].lineno}" if frames else ""


def folder_of(corpus: Path, name: str) -> Path:
    """Return the folder of a target's inputs."""
    return corpus / name.replace("/", "_").replace(" ", "+")


def keep(corpus: Path, name: str, data: bytes) -> Path:
    """Write an input to a corpus, under the beginning of its digest."""
    path = folder_of(corpus, name) / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def list_kept(corpus: Path, name: str) -> Iterator[bytes]:
    """Yield the inputs of a target."""
    folder = folder_of(corpus, name)
    if folder.is_dir():
        yield from (path.read_bytes() for path in sorted(folder.iterdir()))
