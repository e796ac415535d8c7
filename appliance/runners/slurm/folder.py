"""The folder of a job: what the service and the node each find and leave there, and the records between them.

FOLDER/job                   one record: the description
FOLDER/attempts/N/out        records of the node: hello, walls, the worker's frames with the files that belong to them
FOLDER/attempts/N/in         records of the service: go, pause, resume, checkpoint, end
FOLDER/objects/HEX           files of this job, by digest
FOLDER/owner                 the number of the job of Slurm whose folder this is
FOLDER/finished              the worker has said its last word: a job that is started once more does nothing
FOLDER/log                   what the job itself printed
objects/HEX                  files that several jobs read

N counts the starts of the job: it is requeued where its node dies or another job is more urgent.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import BadInput
from appliance.formats.core.frame import read_frame, write_frame

ATTEMPTS, OBJECTS, JOB, LOG, OWNER, FINISHED = "attempts", "objects", "job", "log", "owner", "finished"
IN, OUT = "in", "out"
MAX_FILES = 64
"""That a worker leaves with one frame."""

MAX_OWNER_BYTES = 10
"""Of the number of a job."""
_MAX_ATTEMPTS = 10_000

Record = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Strict):
    """A file that crosses: `path` is relative to its folder."""

    path: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=0)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Left(File):
    """... that a worker left in one of the folders it may write to, by number."""

    folder: int = Field(ge=0, le=15)


class Input(_Strict):
    """A sealed folder that the worker reads."""

    name: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: tuple[File, ...]


@dataclass(frozen=True)
class Description:
    """What a node is told of a job before it has started anything. `code`: the digest of the code that both must run;
    `writes`: how many folders the worker may write to; `scratch`: where on the node its folders are; `nodes`: how many
    the job has, each with `ranks_here` ranks; `commands`: the folder of Slurm's own."""

    key: str
    module: str
    code: str
    gpu: bool
    accepted_missing: tuple[str, ...]
    inputs: tuple[Input, ...]
    writes: int
    scratch: str
    nodes: int = 1
    ranks_here: int = 1
    commands: str = "/usr/bin"

    def encode(self) -> bytes:
        value = asdict(self) | {"inputs": [one.model_dump(mode="json") for one in self.inputs]}
        return encode_record(value | {"frame": "job"})


def parse_description(payload: bytes) -> Description:
    value = parse_record(payload)
    value.pop("frame")
    inputs = tuple(_parse(Input, one) for one in value.pop("inputs"))
    return Description(**value | {"inputs": inputs, "accepted_missing": tuple(value["accepted_missing"])})


def encode_record(value: Record) -> bytes:
    buffer = io.BytesIO()
    write_frame(buffer, value)
    return buffer.getvalue()


def parse_record(payload: bytes) -> Record:
    """BadInput for what is no frame, has a blob, or does not say of which kind it is."""
    found = read_frame(io.BytesIO(payload), len(payload))
    if found is None or not isinstance(found[0].get("frame"), str):
        raise BadInput("shared folder, record: expected a frame, got another")
    return found[0]


def parse_left(value: object) -> tuple[Left, ...]:
    """The files that come with a frame; BadInput where they are too many or not described so."""
    if not isinstance(value, list) or len(value) > MAX_FILES:
        raise BadInput(f"shared folder, files: expected a list of at most {MAX_FILES}, got another")
    return tuple(_parse(Left, one) for one in value)


def _parse(model: type[Any], value: object) -> Any:
    try:
        return model.model_validate(_tuples(value))
    except ValidationError as error:
        raise BadInput(f"shared folder, {model.__name__}: {error.errors()[0]['msg']}") from None


def _tuples(value: object) -> object:
    """Lists as values hold them."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(one) for name, one in value.items()} if isinstance(value, dict) else value


def attempts_of(folder: Path) -> list[int]:
    """The starts of the job that the folder shows, the first one first."""
    try:
        with os.scandir(folder / ATTEMPTS) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ATTEMPTS)]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))


def log_of(rank: int) -> str:
    """The log of a rank on another node than the first, beside the first one's."""
    return f"{LOG}-{rank}"


def label_of(attempt: int, stream: str) -> str:
    """What a record's code binds beside its bytes: from which start, in which direction."""
    return f"{attempt}/{stream}"


def map_paths(task: dict[str, Any], read: tuple[Path, ...], write: tuple[Path, ...]) -> dict[str, Any]:
    """The task with the service's folders as numbers: on the node they are elsewhere."""
    places = [("read", number, path) for number, path in enumerate(read)]
    places += [("write", number, path) for number, path in enumerate(write)]
    return {name: _map_path(value, places) for name, value in task.items()}


def _map_path(value: Any, places: list[tuple[str, int, Path]]) -> Any:
    if isinstance(value, str) and value.startswith("/"):
        for kind, number, path in places:
            if Path(value).is_relative_to(path):
                return {"place": kind, "number": number, "below": str(Path(value).relative_to(path))}
    return value


def place_paths(task: dict[str, Any], read: list[Path], write: list[Path]) -> Iterator[tuple[str, Any]]:
    """The same members with the node's folders."""
    for name, value in task.items():
        if isinstance(value, dict) and value.keys() == {"place", "number", "below"}:
            folders = read if value["place"] == "read" else write
            yield name, str(folders[value["number"]] / value["below"])
        else:
            yield name, value
