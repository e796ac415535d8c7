"""One program that answers, ours or a peer's, in a process of its own.

Reads one JSON command a line and answers each with a line of numbers. Only one program works at a time; the
others wait for their turn. No token ends an answer early, so all programs draw the same number.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.benches.serving_llama_cpp import LlamaCpp
from scripts.benches.serving_peft import Batching, Peft, load_model
from scripts.benches.serving_vllm import Vllm

Numbers = list[float]
PROMPT_CACHE = 256 << 20
"""Bytes that the engine may keep of prompts; it keeps those of a scope alone, which the other rows' requests lack."""


class Ours:
    """The engine that the serving worker runs, without its frames."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        importlib.import_module("appliance.worker.serve")  # First: it says how torch's threads wait.
        from appliance.ml.model import machine
        from appliance.ml.model.base import load_base
        from appliance.ml.serving.engine import ServingEngine

        machine.use_determinism(0)
        before = memory(device)
        found = {"quantisation": quantisation, "compute_dtype": "bfloat16", "device": device}
        loaded = load_base(Path(base), **found, own_layers=True, keeps_dequantised=False)
        _own(loaded.model)
        self._engine = ServingEngine(replace(loaded, chat=_endless(loaded.chat)), PROMPT_CACHE)
        self._device, self._before, self._count = device, before, 0

    def load(self, folders: list[str]) -> Numbers:
        """Load each adapter into the slot of its folder's name, by its fingerprint."""
        for folder in folders:
            self._engine.load(Path(folder).name, *_read(folder), self.logit_fingerprint(folder))
        return [float(len(folders))]

    def logit_fingerprint(self, folder: str) -> dict[str, Any]:
        """Return the fingerprint that an evaluation would seal with the adapter."""
        from appliance.ml.inference.reading import encode_fingerprint, read_fingerprint

        engine = self._engine
        plain = read_fingerprint(engine.base)
        engine.slots.load("new", *_read(folder))
        with engine.slots.using("new"):
            adapted = read_fingerprint(engine.base)
        engine.slots.unload("new")
        return encode_fingerprint(engine.base, plain, adapted)

    def admit(self, folder: str, count: int) -> Numbers:
        """Time a load: adapter read and put in a slot, with its fingerprint, in turns; milliseconds."""
        from appliance.ml.inference.reading import read_fingerprint

        engine, found = self._engine, []
        for _ in range(count):
            began = time.perf_counter()
            config, weights = _read(folder)
            engine.slots.load("new", config, weights)
            read = time.perf_counter()
            with engine.slots.using("new"):
                read_fingerprint(engine.base)
            compared = time.perf_counter()
            engine.slots.unload("new")
            found += [(read - began) * 1e3, (compared - read) * 1e3]
        return found

    def answer(self, prompts: list[str], slots: list[str | None], tokens: int) -> Numbers:
        """All streams at once: [seconds, tokens drawn, most answered at once]."""
        from appliance.ml.inference.request import InferenceRequest
        from appliance.ml.serving.engine import Done

        engine, drawn, widest = self._engine, 0, 0
        began = time.perf_counter()
        for prompt, slot in zip(prompts, slots, strict=True):
            self._count += 1
            request = InferenceRequest(({"role": "user", "content": prompt},), max_tokens=tokens)
            engine.start(f"{self._count}", slot, request)
        while engine.busy:
            for event in engine.step():
                if isinstance(event.content, Done):
                    drawn += event.content.completion_tokens
                elif not isinstance(event.content, str):
                    raise event.content
            widest = max(widest, engine.answering)
        return [time.perf_counter() - began, float(drawn), float(widest)]

    def text(self, prompt: str, slot: str | None, tokens: int) -> str:
        """Return an answer's text, which shows which adapter answers."""
        from appliance.ml.inference.request import InferenceRequest

        self._engine.start("text", slot, InferenceRequest(({"role": "user", "content": prompt},), max_tokens=tokens))
        told = []
        while self._engine.busy:
            told += [event.content for event in self._engine.step() if isinstance(event.content, str)]
        return "".join(told)

    def read(self, ids: list[int], count: int) -> Numbers:
        """So many times the same prompt, read as a request's is, up to the logits behind it; seconds each."""
        from appliance.ml.inference.cache import Cache, RequestCache
        from appliance.ml.inference.sampling import PROMPT_CHUNK, chunk_size, read_prompt

        engine, found = self._engine, []
        size = chunk_size(engine.base, len(ids), PROMPT_CHUNK)
        for _ in range(count):
            cache, held = Cache(engine.base.device, len(ids)), RequestCache()
            began = time.perf_counter()
            for start in range(0, len(ids), size):
                read_prompt(engine.base, engine.slots, cache, held, ids[start : start + size])
            found.append(time.perf_counter() - began)
        return found

    def again(self, beginning: str, ends: list[str], slot: str) -> Numbers:
        """Prompts that begin alike and end otherwise, one after another and one token answered: of each, [seconds,
        tokens of the prompt, those that were not read again]. Nothing is kept of an earlier call's."""
        from appliance.ml.inference.request import InferenceRequest
        from appliance.ml.serving.engine import Done

        engine, found = self._engine, []
        self._count += 1
        scope = f"call {self._count}"
        for number, end in enumerate(ends):
            message = {"role": "user", "content": f"{beginning} {end}"}
            began = time.perf_counter()
            engine.start(f"{scope}, {number}", slot, InferenceRequest((message,), max_tokens=1, scope=scope))
            done = [event.content for event in self._events() if isinstance(event.content, Done)]
            found += [time.perf_counter() - began, done[0].prompt_tokens, done[0].cached_tokens or 0]
        return found

    def _events(self) -> Iterator[Any]:
        while self._engine.busy:
            yield from self._engine.step()

    def logits(self, ids: list[int], slot: str) -> Numbers:
        """Behind the last of these tokens, with this adapter."""
        from appliance.ml.inference.cache import Cache, RequestCache
        from appliance.ml.inference.sampling import read_prompt

        engine = self._engine
        with engine.slots.using(slot):
            found: Numbers = read_prompt(
                engine.base, engine.slots, Cache(engine.base.device, len(ids)), RequestCache(), ids
            ).tolist()
        return found

    def grown(self) -> Numbers:
        """Bytes that base, adapters and the cache have added to the process."""
        return [float(memory(self._device) - self._before)]

    def read_bytes(self, adapter: str) -> Numbers:
        """Bytes of weights that one token of one stream needs: linear layers as they are stored, head, adapter."""
        engine = self._engine
        model, head = engine.base.model, engine.base.head().weight
        linear = sum(
            parameter.numel() * parameter.element_size()
            for name, parameter in model.named_parameters()
            if name.endswith("proj.base.weight") or name.endswith("proj.weight")
        )
        held = sum(
            one.numel() * one.element_size() for pair in engine.slots.find(adapter).weights.values() for one in pair
        )
        return [float(linear + head.numel() * head.element_size() + held)]


class Full:
    """Three full models, as a site without adapters would hold them."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._before = memory(device)
        self._models = [load_model(base, device, "none") for _ in range(3)]
        self._device = device

    def grown(self) -> Numbers:
        for model in self._models:
            _own(model)
        return [float(memory(self._device) - self._before)]


class Machine:
    """The speed of the memory: one long read by every core."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._numbers = torch.ones(1 << 26, device=device)

    def bandwidth(self) -> Numbers:
        """Bytes a second, of five reads of 256 MiB each."""
        import torch

        found = []
        for _ in range(6):
            began = time.perf_counter()
            total = self._numbers.sum()
            total.item()
            found.append(self._numbers.numel() * 4 / (time.perf_counter() - began))
        assert bool(torch.isfinite(total))
        return [max(found)]


def make_adapters(base: str, folder: Path, ranks: Sequence[int]) -> Iterator[Path]:
    """Adapters of random numbers in peft's format, on every linear layer: large enough to change every answer."""
    import safetensors.torch
    import torch

    config = json.loads((Path(base) / "config.json").read_text("utf-8"))
    width, wide = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    shapes = {
        **{f"self_attn.{name}": (width, out) for name, out in (("q_proj", width), ("k_proj", keys), ("v_proj", keys))},
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, wide),
        "mlp.up_proj": (width, wide),
        "mlp.down_proj": (wide, width),
    }
    for number, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for layer in range(config["num_hidden_layers"]):
            for name, (inner, outer) in shapes.items():
                key = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inner, generator=generator) / inner**0.5
                tensors[f"{key}.lora_B.weight"] = torch.randn(outer, rank, generator=generator) * 0.06
        path = folder / f"adapter-{number}"
        path.mkdir()
        said = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
        said |= {"target_modules": sorted(name.rpartition(".")[2] for name in shapes)}
        (path / "adapter_config.json").write_text(json.dumps(said), "utf-8")
        safetensors.torch.save_file(tensors, str(path / "adapter_model.safetensors"))
        yield path


def memory(device: str) -> int:
    """Bytes in use: the GPU's where there is one, else this process's own; files that it mapped are not counted."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    with suppress(OSError, AttributeError):
        # What was freed goes back to the system first.
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("RssAnon:"))


def _own(model: Any) -> None:
    """Copy tensors of a mapped file, so that their memory is counted."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is type(tensor.data.clone()):
            tensor.data = tensor.data.clone()


def _endless(chat: Any) -> Any:
    """Return the same chat without a token that ends an answer."""
    from appliance.ml.model.chat import Chat

    class Endless(Chat):
        def stop_ids(self) -> frozenset[int]:
            return frozenset()

    return Endless(**vars(chat))


def _read(folder: str) -> tuple[bytes, bytes]:
    path = Path(folder)
    return (path / "adapter_config.json").read_bytes(), (path / "adapter_model.safetensors").read_bytes()


PROGRAMS: dict[str, Callable[[str, str, str], Any]] = {
    "ours": Ours,
    "peft": Peft,
    "batching": Batching,
    "full": Full,
    "machine": Machine,
    "vllm": Vllm,
    "llama": LlamaCpp,
}


def main() -> None:
    """Answers on the standard output that the process began with; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = json.loads(sys.argv[1])
    program = PROGRAMS[task["kind"]](task["base"], task["device"], task["quantisation"])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(program, command.pop("do"))(**command)), file=answers, flush=True)


if __name__ == "__main__":
    main()
