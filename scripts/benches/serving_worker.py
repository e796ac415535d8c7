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

from scripts.benches.serving_vllm import Vllm

Numbers = list[float]


class Ours:
    """The engine that the serving worker runs, without its frames."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        importlib.import_module("appliance.worker.serve")  # First: it says how torch's threads wait.
        from appliance.ml.model import machine
        from appliance.ml.model.base import load_base
        from appliance.ml.serving.engine import Engine

        machine.use_determinism(0)
        before = memory(device)
        found = {"quantisation": quantisation, "compute_dtype": "bfloat16", "device": device}
        loaded = load_base(Path(base), **found, reads=True)
        _own(loaded.model)
        self._engine = Engine(replace(loaded, chat=_endless(loaded.chat)))
        self._device, self._before, self._count = device, before, 0

    def load(self, folders: list[str]) -> Numbers:
        """Puts each adapter into the slot of its folder's name, by its probe."""
        for folder in folders:
            self._engine.load(Path(folder).name, *_read(folder), self.probe(folder))
        return [float(len(folders))]

    def probe(self, folder: str) -> dict[str, Any]:
        """What an evaluation would seal with the adapter."""
        from appliance.ml.inference.probe import encode_probe, read_probe

        engine = self._engine
        plain = read_probe(engine.base)
        engine.slots.load("new", *_read(folder))
        with engine.slots.using("new"):
            adapted = read_probe(engine.base)
        engine.slots.unload("new")
        return encode_probe(engine.base, plain, adapted)

    def admit(self, folder: str, count: int) -> Numbers:
        """What a load takes: adapter read and put in a slot, and the same with its probe, in turns; milliseconds."""
        from appliance.ml.inference.probe import read_probe

        engine, found = self._engine, []
        for _ in range(count):
            began = time.perf_counter()
            config, weights = _read(folder)
            engine.slots.load("new", config, weights)
            read = time.perf_counter()
            with engine.slots.using("new"):
                read_probe(engine.base)
            probed = time.perf_counter()
            engine.slots.unload("new")
            found += [(read - began) * 1e3, (probed - read) * 1e3]
        return found

    def answer(self, prompts: list[str], slots: list[str | None], tokens: int) -> Numbers:
        """All streams at once: [seconds, tokens drawn, most answered at once]."""
        from appliance.ml.inference.request import Request
        from appliance.ml.serving.engine import Done

        engine, drawn, widest = self._engine, 0, 0
        began = time.perf_counter()
        for prompt, slot in zip(prompts, slots, strict=True):
            self._count += 1
            request = Request(({"role": "user", "content": prompt},), max_tokens=tokens)
            engine.start(f"{self._count}", slot, request)
        while engine.busy:
            for event in engine.step():
                if isinstance(event.told, Done):
                    drawn += event.told.completion_tokens
                elif not isinstance(event.told, str):
                    raise event.told
            widest = max(widest, engine.answering)
        return [time.perf_counter() - began, float(drawn), float(widest)]

    def text(self, prompt: str, slot: str | None, tokens: int) -> str:
        """An answer's text: who answers is seen by it."""
        from appliance.ml.inference.request import Request

        self._engine.start("text", slot, Request(({"role": "user", "content": prompt},), max_tokens=tokens))
        told = []
        while self._engine.busy:
            told += [event.told for event in self._engine.step() if isinstance(event.told, str)]
        return "".join(told)

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


class Peft:
    """PEFT over transformers, decoding by hand: greedy, a growing cache, the head for the last token alone."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model, self._device = _load_model(base, device, quantisation), device
        self._tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token

    def load(self, folders: list[str]) -> Numbers:
        from peft import PeftModel

        first, *others = folders
        name = Path(first).name
        # Adapters in the compute dtype: quicker for peft than the float32 that it would make of them.
        options: dict[str, Any] = {"autocast_adapter_dtype": False}
        self._model = PeftModel.from_pretrained(self._model, first, adapter_name=name, **options)
        for other in others:
            self._model.load_adapter(other, adapter_name=Path(other).name, **options)
        self._model.eval()
        for key, parameter in self._model.named_parameters():
            if "lora_" in key:
                parameter.data = parameter.data.to(self._model.dtype)
        return [float(len(folders))]

    def alternate(self, prompts: list[str], slots: list[str], tokens: int) -> Numbers:
        """One adapter after another, each with its own prompts in one batch."""
        began, drawn = time.perf_counter(), 0
        for slot in dict.fromkeys(slots):
            self._model.set_adapter(slot)
            mine = [prompt for prompt, other in zip(prompts, slots, strict=True) if other == slot]
            drawn += self._decode(mine, tokens)
        return [time.perf_counter() - began, float(drawn)]

    def mixed(self, prompts: list[str], slots: list[str], tokens: int) -> Numbers:
        """All in one batch, each with its own adapter."""
        began = time.perf_counter()
        drawn = self._decode(prompts, tokens, adapter_names=slots)
        return [time.perf_counter() - began, float(drawn)]

    def _decode(self, prompts: Sequence[str], tokens: int, **more: Any) -> int:
        import torch
        from transformers import DynamicCache

        wanted = [_render(self._tokenizer, prompt) for prompt in prompts]
        self._tokenizer.padding_side = "left"
        filled = self._tokenizer.pad({"input_ids": wanted}, return_tensors="pt").to(self._device)
        ids, mask = filled["input_ids"], filled["attention_mask"]
        # Prompts of one length need no mask, and attention is quicker without.
        padded = not bool(mask.all())
        cache, drawn = DynamicCache(), 0
        with torch.inference_mode():
            for _ in range(tokens):
                places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                found = self._model(
                    input_ids=ids,
                    attention_mask=mask if padded else None,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                    **more,
                )
                ids = found.logits[:, -1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
                drawn += len(ids)
        return drawn


class Batching:
    """transformers' continuous batching over peft with one adapter; it takes no adapter by request."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._peft = Peft(base, device, quantisation)
        self._manager: Any = None

    def load(self, folders: list[str]) -> Numbers:
        loaded = self._peft.load(folders)
        self._peft._model.set_adapter(Path(folders[0]).name)
        return loaded

    def answer(self, prompts: list[str], slots: list[str], tokens: int) -> Numbers:
        """The manager is started once; its small configuration fits what is asked and no more."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        wanted = [_render(self._peft._tokenizer, prompt) for prompt in prompts]
        if self._manager is None:
            longest = max(map(len, wanted)) + tokens
            pages = -(-longest // 64) * len(wanted)
            config = ContinuousBatchingConfig(
                page_size=64,
                num_blocks=pages + len(wanted),
                max_batch_tokens=max(256, sum(map(len, wanted))),
                max_requests_per_batch=len(wanted),
                allow_block_sharing=False,
                auto_switch_to_flash=False,
            )
            generation = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
            self._manager = self._peft._model.base_model.model.init_continuous_batching(
                generation_config=generation, continuous_batching_config=config
            )
            self._manager.start()
        began, drawn = time.perf_counter(), 0
        names = {self._manager.add_request(ids, max_new_tokens=tokens) for ids in wanted}
        while names:
            result = self._manager.get_result(timeout=60)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching: expected an answer, got {result and result.error}")
            if result.is_finished():
                names.discard(result.request_id)
                drawn += len(result.generated_tokens)
        return [time.perf_counter() - began, float(drawn)]


class Full:
    """Three full models, as a site without adapters would hold them."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._before = memory(device)
        self._models = [_load_model(base, device, "none") for _ in range(3)]
        self._device = device

    def grown(self) -> Numbers:
        for model in self._models:
            _own(model)
        return [float(memory(self._device) - self._before)]


class Machine:
    """What the memory gives: one long read by every core."""

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
    """Copies what lies in a mapped file, so that it is counted."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is type(tensor.data.clone()):
            tensor.data = tensor.data.clone()


def _endless(chat: Any) -> Any:
    """The same words, and no token that ends an answer."""
    from appliance.ml.model.chat import Chat

    class Endless(Chat):
        def stop_ids(self) -> frozenset[int]:
            return frozenset()

    return Endless(**vars(chat))


def _read(folder: str) -> tuple[bytes, bytes]:
    path = Path(folder)
    return (path / "adapter_config.json").read_bytes(), (path / "adapter_model.safetensors").read_bytes()


def _render(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _load_model(base: str, device: str, quantisation: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        local_files_only=True,
        dtype=torch.bfloat16,
        device_map={"": device},
        quantization_config=None if quantisation == "none" else four_bit,
    )
    return model.eval()


PROGRAMS: dict[str, Callable[[str, str, str], Any]] = {
    "ours": Ours,
    "peft": Peft,
    "batching": Batching,
    "full": Full,
    "machine": Machine,
    "vllm": Vllm,
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
