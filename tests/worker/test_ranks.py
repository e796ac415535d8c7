"""Two processes train one run: in the sandbox, to the same bytes each time, and to those of one process nearly."""

from __future__ import annotations

import io
import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from appliance.errors import Unavailable
from appliance.formats.core.frame import read_frame
from appliance.ml.training.ranks import Pipe, Ranks
from appliance.sandbox.description import Sandbox
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.local import Worker, start_worker
from appliance.worker.link import WorkerLink
from appliance.worker.ranks import FrameChannel
from tests.worker.conftest import Frame, Process, Start, dataset_task, train_task

KEY = bytes(range(32))
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-3
"""Shares by which two processes may differ from one, in a loss and in a trained weight, as docs/adr/0022 says."""
pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) % 2 != 0, reason="two processes share an even number")

Made = tuple[Frame, list[Frame], Path]


@pytest.fixture(scope="module")
def dataset(start: Start, places: dict[str, Path]) -> None:
    assert start("prepare").run(dataset_task(places), KEY)[0]["frame"] == "result"


@pytest.fixture(scope="module")
def run(start: Start, places: dict[str, Path], dataset: None, tmp_path_factory: Any) -> Callable[..., Made]:
    """Return a function that runs two processes into their own folder, in a sandbox if `sandboxed`."""

    def train(*, sandboxed: bool = False, blob: bytes = b"", **changes: Any) -> Made:
        task, folder = task_of(places, tmp_path_factory.mktemp("run"), **changes)
        if not sandboxed:
            return (*start("train").run(task, blob), folder)
        sandbox = Sandbox(
            read=(Path(task["base"]), Path(task["dataset"])),
            write=(folder / "home", folder / "output", folder / "checkpoints"),
        )
        with start_worker("appliance.worker.train", sandbox, log=folder / "log", probes=Probes()) as worker:
            assert all(worker.layers.values()), worker.reasons
            assert set(worker.check_sandbox(120).values()) == {"refused"}
            worker.send({"frame": "go", **task}, blob)
            frames = [receive(worker, folder)]
            while frames[-1]["frame"] not in ("result", "failure"):
                frames.append(receive(worker, folder))
        return frames[-1], frames[:-1], folder

    return train


def task_of(places: dict[str, Path], folder: Path, **changes: Any) -> tuple[Frame, Path]:
    for name in ("output", "checkpoints", "home"):
        (folder / name).mkdir()
    own = {**places, "output": folder / "output", "checkpoints": folder / "checkpoints"}
    recipe = {"processes": 2, "epochs": 1, "save_steps": 2, "validation": "0.2", "eval_steps": 2, **changes}
    return train_task(own, "output", **recipe), folder


def receive(worker: Worker, folder: Path) -> Frame:
    received = worker.receive(120)
    assert received is not None, (folder / "log").read_text()[-2000:]
    return received[0]


@pytest.fixture(scope="module")
def sandboxed(run: Callable[..., Made]) -> Made:
    made = run(sandboxed=True)
    assert made[0]["frame"] == "result", made[0]
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def told(frames: list[Frame]) -> list[Frame]:
    """Return the frames of the steps without their measurements."""
    measured = ("seconds", "peak_bytes")
    return [
        {name: value for name, value in frame.items() if name not in measured}
        for frame in frames
        if frame["frame"] == "step"
    ]


@pytest.mark.thorough
def test_a_rank_on_another_node_gives_the_bytes_of_one_that_was_forked(
    sandboxed: Made, places: dict[str, Path], dataset: None, start: Start, tmp_path: Path
) -> None:
    """In the sandbox and without it. The frames pass through this test, as through the launchers of two nodes."""
    task, folder = task_of(places, tmp_path)
    shape = {**task, "nodes": 2, "threads": len(os.sched_getaffinity(0)) // 2}
    first, other = start("train"), start("train")
    first.send({"frame": "go", **shape})
    other.send({"frame": "go", **shape, "rank": 1})

    def carry(source: Process, target: Process) -> Frame:
        while (received := read_frame(source.stdout, max_blob=1 << 20)) is not None:  # type: ignore[arg-type]
            header, blob = received
            if header["frame"] == "rank":
                assert header["rank"] == 1
                target.send(header, blob)
            elif header["frame"] in ("result", "failure"):
                return header
        raise AssertionError("a worker ended without a result")

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(carry, first, other), pool.submit(carry, other, first)]
        result, followed = (end.result(300) for end in ends)
    assert (result["frame"], followed) == ("result", {"frame": "result"}), (result, followed)
    assert files(folder) == files(sandboxed[2])
    steps = sandboxed[0]["steps"]
    assert sorted(files(folder)) == [
        *(f"checkpoints/step-{step:07d}.safetensors" for step in sorted({*range(2, steps + 1, 2), steps})),
        "output/adapter_model.safetensors",
    ]


@pytest.mark.thorough
def test_a_run_of_two_processes_continues_and_is_replayed_bit_for_bit(
    sandboxed: Made, run: Callable[..., Made], start: Start, places: dict[str, Path], tmp_path: Path
) -> None:
    """With dropout, so that each rank's random numbers are those of its step."""
    kept = files(sandboxed[2])
    blob = kept["checkpoints/step-0000002.safetensors"]
    resumed = run(sandboxed=True, blob=blob)
    assert resumed[0]["frame"] == "result", resumed[0]
    assert files(resumed[2]) == {name: data for name, data in kept.items() if "0000002" not in name}
    assert told(resumed[1]) == told(sandboxed[1])[2:]
    task, _ = task_of(places, tmp_path)
    window = {"stop": 4, "before": str(tmp_path / "before"), "got": str(tmp_path / "got")}
    assert start("train").run(task | window, blob)[0]["frame"] == "result"
    assert (tmp_path / "got").read_bytes() == kept["checkpoints/step-0000004.safetensors"]
    assert start("train").run(task | window | {"stop": 2})[0]["frame"] == "result"
    assert (tmp_path / "got").read_bytes() == blob


@pytest.mark.thorough
def test_two_processes_agree_with_one(run: Callable[..., Made]) -> None:
    """Without dropout, whose random numbers are other ones: the losses, and what training moved the weights by."""
    plain = {"dropout": "0.0", "compute_dtype": "float32"}
    (one, alone, folder), (two, together, other) = run(processes=1, **plain), run(processes=2, **plain)
    losses = [[frame["loss"] for frame in frames if frame["frame"] == "step"] for frames in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE)
    assert losses[1] != losses[0], "one process alone has computed this"
    assert (two["tokens"], two["trained_tokens"]) == (one["tokens"], one["trained_tokens"])
    assert [float(loss) for _, loss in two["validation"]] == pytest.approx(
        [float(loss) for _, loss in one["validation"]], rel=LOSS_TOLERANCE
    )
    assert two["peak_bytes"] > 1.5 * one["peak_bytes"], "the memory of both is told"
    weights = [safetensors.torch.load_file(at / "output/adapter_model.safetensors") for at in (folder, other)]
    apart = 0.0
    for name, weight in weights[0].items():
        if "lora_B" in name:  # begins at zero, so that all of it was moved
            apart = max(apart, ((weights[1][name] - weight).norm() / weight.norm()).item())
    assert 0 < apart < WEIGHT_TOLERANCE


def test_a_number_of_processes_that_does_not_divide_the_threads_is_refused(
    places: dict[str, Path], dataset: None, start: Start, tmp_path: Path
) -> None:
    threads = len(os.sched_getaffinity(0))
    task, _ = task_of(places, tmp_path, processes=threads + 1)
    failure, frames = start("train").run(task)
    assert frames == [] and failure["code"] == "bad-input"
    assert failure["message"] == (
        f"recipe, processes: expected a divisor of this machine's {threads} threads, got {threads + 1}"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_added_in_float32_in_the_order_of_the_ranks(dtype: torch.dtype) -> None:
    """The three numbers have another sum in any other order; a rank without a gradient adds none."""
    parts = [torch.tensor([value, value], dtype=dtype) for value in (1.0, 2.0**24, -(2.0**24))]
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for _ in range(3)]
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part
    lonely = [torch.nn.Parameter(torch.zeros(70_000)) for _ in range(3)]
    lonely[1].grad = torch.full((70_000,), 3.0)
    ends = [(os.pipe(), os.pipe()) for _ in range(2)]
    ranks = [Ranks(0, 3, [Pipe(up[0], down[1]) for up, down in ends])]
    ranks += [Ranks(number, 3, [Pipe(down[0], up[1])]) for number, (up, down) in enumerate(ends, start=1)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda rank: rank.add_gradients([weights[rank.rank], lonely[rank.rank]]), ranks))
        merged = list(pool.map(lambda rank: rank.merge({rank.rank: rank.rank / 3}), ranks))
    expected = (parts[0].float() + parts[1].float() + parts[2].float()).to(dtype)
    for weight, other in zip(weights, lonely, strict=True):
        assert weight.grad is not None and torch.equal(weight.grad, expected)
        assert other.grad is not None and torch.equal(other.grad, torch.full((70_000,), 3.0))
    assert merged == [{0: 0.0, 1: 1 / 3, 2: 2 / 3}] * 3
    for descriptor in (one for pairs in ends for pair in pairs for one in pair):
        os.close(descriptor)


def test_ranks_with_other_weights_are_named() -> None:
    """As on a node whose processor rounds otherwise."""
    ends = os.pipe(), os.pipe()
    first, other = Ranks(0, 2, [Pipe(ends[0][0], ends[1][1])]), Ranks(1, 2, [Pipe(ends[1][0], ends[0][1])])
    weights = [{"a": torch.nn.Parameter(torch.full((3,), value))} for value in (1.0, 1.0 + 2**-23)]
    other.check_same(weights[0])
    first.check_same(weights[0])
    other.check_same(weights[1])
    with pytest.raises(Unavailable, match="rank 1: expected the weights of rank 0, got others") as caught:
        first.check_same(weights[0])
    assert caught.value.code == "ranks-differ"
    for descriptor in (one for pair in ends for one in pair):
        os.close(descriptor)


@pytest.mark.thorough
def test_a_rank_on_another_node_that_says_nothing_or_ends_is_named() -> None:
    parts: queue.Queue[bytes | None] = queue.Queue()
    session = WorkerLink(io.BytesIO(), io.BytesIO())
    ranks = Ranks(0, 2, [FrameChannel(session, 1, parts, silent_s=1)])
    with pytest.raises(Unavailable, match="rank 1: expected its part of a step, got nothing") as silent:
        ranks.merge({0: 1.0})
    parts.put(None)
    with pytest.raises(Unavailable, match="rank 1: expected its part of a step, got its end") as ended:
        ranks.merge({0: 1.0})
    assert (silent.value.code, ended.value.code) == ("rank-silent", "rank-ended")
