"""Slots for adapters: plain LoRA on the linear layers, with each adapter in a slot of its own.

PEFT switches adapters by state on the shared model, and a failed call has left that state behind (PEFT issue 3475).
Here a slot is a set of tensors, and a `with` block selects the slot that applies, so an exception cannot leave it on.
With one adapter in use (`using`) the arithmetic is that of `ml/layers/decoder.py`; in the library's modules it is
PEFT's, in its order and dtypes, and a test compares the bits. With an adapter per row (`mixing`) it is that of
`ml/inference/lora.py`, and of `ml/inference/stepping.py` for the architectures of the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from appliance.errors import BadInput, Conflict, NotFound
from appliance.ml.inference.lora import AdapterWeights, Layout, Mix, RowGroup, RowLayout, Stacks, multiply_rows
from appliance.ml.inference.stepping import make_stepper
from appliance.ml.layers.decoder import ReadAdapter
from appliance.ml.model.base import LoadedBase
from appliance.ml.quantised.linear import GptqLinear

CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
# Upper bound of rank and alpha; larger values may not be representable as floats.
_MOST = 1 << 20
_NEUTRAL: tuple[object, ...] = (None, False, "", "none", "NONE", [], {}, ())
# Fields of a plain LoRA configuration; all other fields must have a neutral value.
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
    """The values of an adapter's configuration that the arithmetic needs."""

    rank: int
    scaling: float
    target_modules: frozenset[str]


def parse_adapter_config(data: bytes) -> LoraConfig:
    """Return an adapter's configuration.

    Raises:
        BadInput: a field makes it more than plain LoRA or rsLoRA, or is out of range; the message names it.
    """
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
    """Return True if an adapter is on linear layers only; PEFT applies adapters on experts, which are not served."""
    config = json.loads(data)
    return not (isinstance(config, dict) and config.get("target_parameters"))


def parse_adapter(
    config_data: bytes, weights_data: bytes, layers: Mapping[str, AdaptedLinear], device: str
) -> AdapterWeights:
    """Return the adapter in two buffers, checked against a base's layers.

    Raises:
        BadInput: a targeted layer lacks A or B, a tensor is left over, or a value is not finite.
    """
    config = parse_adapter_config(config_data)
    try:
        tensors = safetensors.torch.load(weights_data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadInput(f"adapter weights: expected safetensors, got: {error}") from None
    targeted = {
        name: layer
        for name, layer in layers.items()
        # As in PEFT: the whole name, or its end.
        if any(f".{name}".endswith(f".{target}") for target in config.target_modules)
    }
    weights = {name: _take_pair(tensors, name, layer, config.rank, device) for name, layer in targeted.items()}
    if tensors or not weights:
        over = ", ".join(sorted(tensors)[:3]) or "no targeted layer"
        raise BadInput(f"adapter weights: expected exactly the targeted layers, got {over}")
    return AdapterWeights(config.scaling, weights)


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
    """A base layer with the adapter that its `AdapterSlots` currently select."""

    def __init__(self, base: Any, name: str, slots: AdapterSlots) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self.group = RowGroup((name,), base.in_features, (base.out_features,))
        self._rounds_first = type(base) not in (torch.nn.Linear, GptqLinear)
        # In a tuple, so that torch does not register it as a child module.
        self._slots = (slots,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slots = self._slots[0]
        if slots.mix is not None:
            return self._forward_mixed(x, slots.mix)
        result: torch.Tensor = self.base(x)
        adapter = slots.active
        pair = adapter.weights.get(self._name) if adapter is not None else None
        if adapter is None or pair is None:
            return result
        low = torch.nn.functional.linear(x.to(torch.float32), pair[0])
        added = torch.nn.functional.linear(low, pair[1]).mul_(adapter.scaling)
        # PEFT rounds before the sum for bitsandbytes' layers, and after it for others.
        return result.add_(added.to(result.dtype)) if self._rounds_first else added.add_(result).to(result.dtype)

    def _forward_mixed(self, x: torch.Tensor, mix: Mix) -> torch.Tensor:
        """Return the output for a batch whose rows use different adapters; x is [1, rows, in]."""
        rows = x.flatten(0, -2)
        result = multiply_rows(self.base, rows).float()
        mix.add(self.group, rows.float(), result)
        return result.to(x.dtype).view(*x.shape[:-1], -1)


class AdapterSlots:
    """The adapters over one base, whose linear layers are wrapped when the instance is created."""

    def __init__(self, base: LoadedBase) -> None:
        model, device = base.model, base.device
        self.active: AdapterWeights | None = None
        self.mix: Mix | None = None
        self._using: str | None = None
        self._last_layout: tuple[tuple[str | None, ...], Mix] | None = None
        self._device = device
        self._model, self._reader, self._library = model, base.reader, base.uses_library_modules
        self._rows: tuple[str | None, ...] = ()
        self._adapters: dict[str, AdapterWeights] = {}
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
        self._layout: Layout = RowLayout(groups, dtype) if device == "cpu" else Stacks(groups, device)

    def remove(self) -> None:
        """Unwrap the base's linear layers and unload all adapters."""
        for name, layer in self._layers.items():
            self._model.set_submodule(name, layer.base)
        self._layers.clear()
        for slot in list(self._adapters):
            self.unload(slot)
        self._last_layout = None
        self._layout.clear()

    def load(self, slot: str, config: bytes, weights: bytes) -> None:
        """Load an adapter from buffers into an empty slot.

        Raises:
            Conflict: the slot holds an adapter.
            BadInput: the adapter does not fit the base.
        """
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
        self._last_layout = None
        self._layout.forget(slot)

    def __contains__(self, slot: str) -> bool:
        return slot in self._adapters

    @contextmanager
    def using(self, slot: str | None) -> Iterator[None]:
        """Apply this slot's adapter within the block; None is the base alone."""
        self._check_idle()
        with self._selecting(slot):
            yield

    def bare(self) -> AbstractContextManager[None]:
        """Apply the base alone within the block, inside `using`."""
        return self._selecting(None)

    @contextmanager
    def _selecting(self, slot: str | None) -> Iterator[None]:
        before = self._using
        self._select(slot)
        try:
            yield
        finally:
            self._select(before)

    def _select(self, slot: str | None) -> None:
        self.active, self._using = None if slot is None else self.find(slot), slot
        if self._reader is not None:
            self._reader.adapter = None if slot is None else self._read[slot]

    @contextmanager
    def laying_out(self) -> Iterator[Mix]:
        """Yield the layout of a step: that of `mixing`, or of one row with the adapter in use."""
        if self.mix is not None:
            yield self.mix
            return
        self.mix = self._lay_out([self._using])
        try:
            yield self.mix
        finally:
            self.mix = None

    @contextmanager
    def mixing(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Apply to each row of a batch its own slot's adapter within the block; None is the base alone."""
        self._check_idle()
        for slot in rows:
            if slot is not None:
                self.find(slot)
        self.mix = Mix((), ()) if self._library else self._lay_out(rows)
        self._rows = tuple(rows)
        try:
            yield
        finally:
            self.mix, self._rows = None, ()

    def _lay_out(self, slots: Sequence[str | None]) -> Mix:
        """Return the layout of a batch whose requests use these slots; the last one is reused while they stay the
        same."""
        if self._last_layout is None or self._last_layout[0] != tuple(slots):
            self._last_layout = tuple(slots), self._layout.lay_out(slots, self._adapters)
        return self._last_layout[1]

    @contextmanager
    def picking(self, row: int) -> Iterator[None]:
        """Apply the adapter of one row of `mixing` within the block; outside a batch the adapter in use stays."""
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

    def find(self, slot: str) -> AdapterWeights:
        """Return a slot's adapter.

        Raises:
            NotFound: the slot is empty.
        """
        adapter = self._adapters.get(slot)
        if adapter is None:
            raise NotFound(f"slot {slot}: expected a loaded adapter, got none")
        return adapter
