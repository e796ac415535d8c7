"""Workers as the service starts them, in their sandbox, on the card; a base, its rows and an adapter of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.sandbox.description import Sandbox
from appliance.sandbox.local import Worker, start_worker
from scripts.kit.tiny_model import RECIPE, build_base, clauses, write_csv
from scripts.kit.warm import forked_workers
from tests.kit.gptq import Packing, quantise_folder

Frame = dict[str, Any]
KEY = bytes(range(32))
DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
"""`cpu` in the dry run of scripts/gpu: the same tests, of everything but the card."""
TUPLE = {"device": DEVICE, "compute_dtype": "bfloat16", "quantisation": "nf4-double"}


def receive(worker: Worker) -> Frame:
    """Return the next frame, which must come."""
    received = worker.receive(120.0)
    assert received is not None, "expected a frame, got the worker's end"
    return received[0]


@dataclass
class Site:
    """Folders under one root, and the logs of the workers that read and wrote them."""

    root: Path
    recipe: Frame = field(default_factory=lambda: RECIPE | TUPLE | {"save_steps": 4})

    base: str = "base"

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def start(self, name: str, read: tuple[str, ...], write: tuple[str, ...] = ()) -> Worker:
        """Start a worker, after its attempts to escape from the sandbox failed."""
        read_paths = tuple(self.root / one for one in read)
        write_paths = (self.folder(f"scratch-{name}"), *(self.folder(one) for one in write))
        sandbox = Sandbox(read=read_paths, write=write_paths, devices=DEVICE == "cuda" and name != "prepare")
        worker = start_worker(f"appliance.worker.{name}", sandbox, log=self.root / f"{name}.log")
        through = {probe: result for probe, result in worker.check_sandbox().items() if result != "refused"}
        assert not through, through
        return worker

    def run(self, name: str, task: Frame, blob: bytes = b"", **paths: tuple[str, ...]) -> tuple[Frame, list[Frame]]:
        """Return the task's last frame, which must be a result, and those before it."""
        with self.start(name, **paths) as worker:
            worker.send({"frame": "go", **task}, blob)
            frames = [receive(worker)]
            while frames[-1]["frame"] not in ("result", "failure"):
                frames.append(receive(worker))
        assert frames[-1]["frame"] == "result", (frames[-1], (self.root / f"{name}.log").read_text()[-2000:])
        return frames[-1], frames[:-1]

    def task(self, *names: str, **more: Any) -> Frame:
        return {
            "recipe": self.recipe,
            "base": str(self.root / self.base),
            **{name: str(self.root / name) for name in names},
            **more,
        }

    def train(self, output: str, blob: bytes = b"") -> tuple[Frame, list[Frame]]:
        """Train into a folder of its own. `blob` is the training checkpoint to resume from."""
        kept = f"{output}-checkpoints"
        task = self.task("dataset", output=str(self.root / output), checkpoints=str(self.root / kept), seconds=0.0)
        return self.run("train", task, blob, read=(self.base, "dataset"), write=(output, kept))

    def evaluate(self, adapter: str) -> Frame:
        items = f"{adapter}-items"
        paths = {"adapter": str(self.root / adapter), "output": str(self.root / items)}
        task = self.task("dataset", **paths, sets=[], shipped=["general", "refusal"], answers=False)
        return self.run("evaluate", task, read=(self.base, "dataset", adapter), write=(items,))[0]


@pytest.fixture(scope="session", autouse=True)
def forked() -> Iterator[None]:
    """In the dry run workers are forks: on the card each has its own CUDA, which no fork may take over."""
    if DEVICE != "cpu":
        yield
        return
    with pytest.MonkeyPatch.context() as patch, forked_workers():
        # As those forks have: what a test computes itself is compared with what they said.
        torch.set_num_threads(1)
        patch.setattr(torch, "set_num_threads", lambda count: None)
        yield


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With a base and a dataset, each made by its worker, which sees no card."""
    site = Site(tmp_path_factory.mktemp("gpu"))
    source = build_base(site.root / "source")
    write_csv(site.root / "clauses.csv", clauses(60))
    task = {"task": "base", "source": str(source), "output": str(site.root / "base")}
    site.run("prepare", task, read=("source",), write=("base",))
    rows = {
        "task": "dataset",
        "source": str(site.root / "clauses.csv"),
        "format": "csv",
        "dataset_kind": "classification",
        "columns": {"text": "text", "label": "label"},
        "labels": [],
        "instruction": "Name the kind.",
        "base": str(site.root / "base"),
        "seed": 1,
        "held_out": "0.2",
        "output": str(site.root / "dataset"),
    }
    site.run("prepare", rows, KEY, read=("clauses.csv", "base"), write=("dataset",))
    return site


@pytest.fixture(scope="session")
def gptq_site(site: Site) -> Site:
    """Return the site with the base packed by GPTQ, in 4 bits and groups of 32, and imported unchanged."""
    quantise_folder(site.root / "source", site.root / "gptq-source", Packing(4, 32, True, False, "gptq"))
    task = {"task": "base", "source": str(site.root / "gptq-source"), "output": str(site.root / "gptq-base")}
    site.run("prepare", task, read=("gptq-source",), write=("gptq-base",))
    return Site(site.root, site.recipe | {"method": "lora", "quantisation": "gptq"}, "gptq-base")


@pytest.fixture(scope="session")
def trained(site: Site) -> tuple[Frame, list[Frame]]:
    return site.train("adapter")


@pytest.fixture(scope="session")
def evaluated(site: Site, trained: tuple[Frame, list[Frame]]) -> Frame:
    return site.evaluate("adapter")


@pytest.fixture
def server(site: Site, evaluated: Frame) -> Iterator[Worker]:
    """Yield the serving worker with the adapter in two slots, each compared by its logit fingerprint."""
    with site.start("serve", read=("base",)) as worker:
        worker.send({"frame": "go", "base": str(site.root / "base"), "prompt_cache_bytes": 1 << 24, **TUPLE})
        assert receive(worker)["frame"] == "ready"
        config = (site.root / "adapter" / "adapter_config.json").read_text()
        weights = (site.root / "adapter" / "adapter_model.safetensors").read_bytes()
        for slot in ("one", "two"):
            worker.send(
                {"frame": "load", "slot": slot, "config": config, "logit_fingerprint": evaluated["logit_fingerprint"]},
                weights,
            )
            assert receive(worker) == {"frame": "loaded", "slot": slot, "fingerprint_ok": True}
        yield worker
