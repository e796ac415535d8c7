"""Adapters at work: plain LoRA over the linear layers, each adapter in a slot of its own.

peft switches adapters by state on the shared model, and a failed call has left that state behind (peft issue 3475).
Here nothing is switched: a slot is a set of tensors, and which one applies is said for the length of one `with`, so
that an exception cannot leave it on. With one adapter in use (`using`) the arithmetic is that of
`ml/layers/reader.py`; where the library's modules are at work it is peft's, in its order and dtypes: a test compares
the bits. With one a row (`mixing`) it is that of `ml/lora/mixing.py`, and of `ml/inference/stepping.py` for the
architectures of the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from appliance.errors import BadInput, Conflict, NotFound
from appliance.ml.inference.stepping import make_stepper
from appliance.ml.layers.reader import ReadAdapter
from appliance.ml.lora.kernel import Rows
from appliance.ml.lora.mixing import Adapter, Mix, Mixer, RowGroup, multiply_rows
from appliance.ml.lora.stacking import Stacks
from appliance.ml.model.base import Base
from appliance.ml.quantised.linear import GptqLinear

CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
# No adapter has a larger rank or alpha, and what is larger may be no float any more.
_MOST = 1 << 20
_NEUTRAL: tuple[object, ...] = (None, False, "", "none", "NONE", [], {}, ())
# What a plain LoRA's configuration says; every other member must say nothing.
_KNOWN = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)


@dataclass(frozen=True)
class LoraConfig:
    """What of a configuration the arithmetic needs."""

    rank: int
    scaling: float
    target_modules: frozenset[str]


def parse_adapter_config(data: bytes) -> LoraConfig:
    """BadInput names the member that makes it more than plain LoRA or rsLoRA."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"adapter configuration: expected JSON, got: {str(error)[:80]}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = repr(config.get("peft_type") if isinstance(config, dict) else config)[:40]
        raise BadInput(f"adapter configuration, peft_type: expected LORA, got {got}", code="not-servable")
    for key, value in sorted(config.items()):
        if key not in _KNOWN and value not in _NEUTRAL:
            raise BadInput(f"adapter configuration, {key}: expected plain LoRA, got {value!r}", code="not-servable")
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not (type(rank) is int and 1 <= rank <= _MOST and isinstance(alpha, int | float) and 0 < alpha <= _MOST):
        raise BadInput(
            f"adapter configuration, r and lora_alpha: expected numbers above 0 and at most {_MOST}, "
            f"got {rank!r:.40} and {alpha!r:.40}"
        )
    if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
        raise BadInput(f"adapter configuration, target_modules: expected a list of names, got {modules!r}")
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return LoraConfig(rank, scaling, frozenset(modules))


def fits_slot(data: bytes) -> bool:
    """Whether an adapter is on linear layers alone; one on experts' parameters is applied by peft, and not served."""
    config = json.loads(data)
    return not (isinstance(config, dict) and config.get("target_parameters"))


def parse_adapter(config_data: bytes, weights_data: bytes, layers: Mapping[str, AdaptedLinear], device: str) -> Adapter:
    """The adapter of two buffers, fitted to a base: every targeted layer has its A and B, and nothing is left over."""
    config = parse_adapter_config(config_data)
    try:
        tensors = safetensors.torch.load(weights_data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadInput(f"adapter weights: expected safetensors, got: {error}") from None
    targeted = {
        name: layer
        for name, layer in layers.items()
        # As peft does: the whole name, or its end.
        if any(f".{name}".endswith(f".{target}") for target in config.target_modules)
    }
    weights = {name: _take_pair(tensors, name, layer, config.rank, device) for name, layer in targeted.items()}
    if tensors or not weights:
        over = ", ".join(sorted(tensors)[:3]) or "no targeted layer"
        raise BadInput(f"adapter weights: expected exactly the targeted layers, got {over}")
    return Adapter(config.scaling, weights)


def _take_pair(
    tensors: dict[str, torch.Tensor], name: str, layer: AdaptedLinear, rank: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = {"lora_A": (rank, layer.base.in_features), "lora_B": (layer.base.out_features, rank)}
    pair = []
    for part, shape in shapes.items():
        key = f"{_PREFIX}{name}.{part}.weight"
        tensor = tensors.pop(key, None)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
            raise BadInput(f"adapter weights, {key}: expected floating point {shape}, got {got}")
        if not bool(tensor.isfinite().all()):
            raise BadInput(f"adapter weights, {key}: expected finite numbers, got infinite ones or NaN")
        pair.append(tensor.to(device=device, dtype=torch.float32))
    return pair[0], pair[1]


class AdaptedLinear(torch.nn.Module):
    """A base layer, plus whatever adapter the `Slots` it belongs to say for this moment."""

    def __init__(self, base: Any, name: str, slots: Slots) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self.group = RowGroup((name,), base.in_features, (base.out_features,))
        self._rounds_first = type(base) not in (torch.nn.Linear, GptqLinear)
        # In a tuple, so that the module tree does not take it for a child.
        self._slots = (slots,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slots = self._slots[0]
        if slots.mix is not None:
            return self._mixed(x, slots.mix)
        result: torch.Tensor = self.base(x)
        adapter = slots.active
        pair = adapter.weights.get(self._name) if adapter is not None else None
        if adapter is None or pair is None:
            return result
        low = torch.nn.functional.linear(x.to(torch.float32), pair[0])
        added = torch.nn.functional.linear(low, pair[1]).mul_(adapter.scaling)
        # peft rounds before the sum over bitsandbytes' layers, and after it over others.
        return result.add_(added.to(result.dtype)) if self._rounds_first else added.add_(result).to(result.dtype)

    def _mixed(self, x: torch.Tensor, mix: Mix) -> torch.Tensor:
        """A batch whose rows use adapters of their own; x is [1, rows, in]."""
        rows = x.flatten(0, -2)
        result = multiply_rows(self.base, rows).float()
        mix.add(self.group, rows.float(), result)
        return result.to(x.dtype).view(*x.shape[:-1], -1)


class Slots:
    """The adapters over one base. The model is the base's own; its linear layers are wrapped once, here."""

    def __init__(self, base: Base) -> None:
        model, device = base.model, base.device
        self.active: Adapter | None = None
        self.mix: Mix | None = None
        self._using: str | None = None
        self._alone: Mix | None = None
        self._device = device
        self._model, self._reader, self._library = model, base.reader, base.library
        self._rows: tuple[str | None, ...] = ()
        self._adapters: dict[str, Adapter] = {}
        self._read: dict[str, ReadAdapter] = {}
        self._layers: dict[str, AdaptedLinear] = {}
        self.stepper = make_stepper(model)
        head = model.get_output_embeddings()
        linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        for name, module in linears:
            if module is not head:
                self._layers[name] = AdaptedLinear(module, name, self)
                model.set_submodule(name, self._layers[name])
        groups = self.stepper.groups if self.stepper is not None else [layer.group for layer in self._layers.values()]
        dtype = model.get_input_embeddings().weight.dtype
        self._mixer = Mixer(Rows(groups, dtype) if device == "cpu" else Stacks(groups, device))

    def remove(self) -> None:
        """Unwraps the model: nothing of the slots is left in it."""
        for name, layer in self._layers.items():
            self._model.set_submodule(name, layer.base)
        self._layers.clear()
        for slot in list(self._adapters):
            self.unload(slot)
        self._mixer.clear()

    def load(self, slot: str, config: bytes, weights: bytes) -> None:
        """Fills a slot from buffers; a slot is never filled twice."""
        if slot in self._adapters:
            raise Conflict(f"slot {slot}: expected an empty one, got one that holds an adapter")
        adapter = parse_adapter(config, weights, self._layers, self._device)
        if self._reader is not None:
            self._read[slot] = self._reader.join(adapter.weights, adapter.scaling)
        self._adapters[slot] = adapter

    def unload(self, slot: str) -> None:
        self.find(slot)
        del self._adapters[slot]
        for low in (low for layer in self._read.pop(slot, ()) for low in layer if low is not None):
            low.forget()
        self._mixer.forget(slot)

    def __contains__(self, slot: str) -> bool:
        return slot in self._adapters

    @contextmanager
    def using(self, slot: str | None) -> Iterator[None]:
        """Within it the model answers as base plus this slot's adapter, or, for None, as the base."""
        self._check_idle()
        # What was laid out before was for what was in use then.
        self._alone = None
        self.active, self._using = self.find(slot) if slot is not None else None, slot
        if self._reader is not None and slot is not None:
            self._reader.adapter = self._read[slot]
        try:
            yield
        finally:
            self.active = self._using = self._alone = None
            if self._reader is not None:
                self._reader.adapter = None

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within `using`: the model answers as the base for a while."""
        active, using, read = self.active, self._using, None if self._reader is None else self._reader.adapter
        self.active = self._using = self._alone = None
        if self._reader is not None:
            self._reader.adapter = None
        try:
            yield
        finally:
            self.active, self._using, self._alone = active, using, None
            if self._reader is not None:
                self._reader.adapter = read

    @contextmanager
    def laying_out(self) -> Iterator[Mix]:
        """Within it a step of a batch is computed: the one of `mixing`, or one row that uses what is in use."""
        if self.mix is not None:
            yield self.mix
            return
        if self._alone is None:
            self._alone = self._mixer.mix([self._using], self._adapters)
        self.mix = self._alone
        try:
            yield self.mix
        finally:
            self.mix = None

    @contextmanager
    def mixing(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Within it row by row of a batch is answered with its own slot's adapter, or, for None, as the base."""
        self._check_idle()
        for slot in rows:
            if slot is not None:
                self.find(slot)
        self.mix = Mix((), ()) if self._library else self._mixer.mix(rows, self._adapters)
        self._rows = tuple(rows)
        try:
            yield
        finally:
            self.mix, self._rows = None, ()

    @contextmanager
    def picking(self, row: int) -> Iterator[None]:
        """Within it one row of the batch of `mixing` is answered by itself; without a batch, what is in use is."""
        if self.mix is None:
            yield
            return
        mix, self.mix = self.mix, None
        try:
            with self.using(self._rows[row]):
                yield
        finally:
            self.mix = mix

    def _check_idle(self) -> None:
        if self.active is not None or self.mix is not None:
            raise Conflict("engine: expected no adapter in use, got one")

    def find(self, slot: str) -> Adapter:
        """NotFound where the slot holds nothing."""
        adapter = self._adapters.get(slot)
        if adapter is None:
            raise NotFound(f"slot {slot}: expected a loaded adapter, got none")
        return adapter
