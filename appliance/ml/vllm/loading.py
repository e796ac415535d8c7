"""Starts vLLM in this process: without a socket, a second process, a file of its own choosing or a compiler.

vLLM's weights are the very values that the adapter was trained and judged over: a layer of 4 bits is dequantised into
the compute dtype. Only the arithmetic is another: its kernels, and its order of sums.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import torch.distributed

from appliance.domain.evaluation.engines import VLLM_SLOTS
from appliance.errors import BadInput, Unavailable
from appliance.ml.model.base import Base, load_base
from appliance.ml.quantised.linear import GptqLinear

RANK = 64
"""The largest of an adapter."""
ROWS = 32
_CACHE_TOKENS = 1 << 16
_FORMAT = "appliance"


def start(folder: Path, *, quantisation: str, compute_dtype: str) -> tuple[Base, Any]:
    """The base, of which vLLM has the weights, and vLLM's engine. BadInput for what it cannot take; Unavailable where
    it is not installed."""
    if quantisation == "int8":
        raise BadInput("base, quantisation: expected nf4-double, gptq or none with vLLM, got int8")
    base = load_base(folder, quantisation=quantisation, compute_dtype=compute_dtype, device="cpu")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(base.model.config))
    _join_alone()
    # Its modules name the compiler when they are loaded; eager, it is never called.
    sys.modules.pop("torch._inductor.compile_fx", None)
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils import cpu_resource_utils
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import uniproc_executor
    except ImportError as error:
        raise Unavailable(
            f"engine: expected vLLM in vllm_packages, got no module {error.name}", code="no-vllm"
        ) from None
    # The walls have no shared memory, of which a lock between processes would be made, and let no lscpu start.
    uniproc_executor.Lock = threading.Lock
    cpu_resource_utils._get_cpu_list = cpu_resource_utils._synthesize_cpu_list
    _register(base.model)
    _look_at_model_here(base.model.config.architectures)
    arguments = EngineArgs(
        model=str(folder),
        load_format=_FORMAT,
        dtype=compute_dtype,
        max_model_len=base.context_length,
        max_num_seqs=ROWS,
        enable_lora=True,
        max_loras=VLLM_SLOTS,
        max_cpu_loras=VLLM_SLOTS,
        max_lora_rank=RANK,
        # Keyed by slot and salt besides the tokens (`engine.py`).
        enable_prefix_caching=True,
        enforce_eager=True,
        disable_log_stats=True,
        generation_config="vllm",
        trust_remote_code=False,
        seed=0,
    )
    engine = LLMEngine.from_engine_args(arguments)
    return base, engine


def describe_form(quantisation: str, compute_dtype: str) -> str:
    """The numbers that vLLM multiplies, in words."""
    return compute_dtype if quantisation == "none" else f"{quantisation} as {compute_dtype}"


def _cache_gib(config: Any) -> int:
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token: int = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head
    return max(1, -(-_CACHE_TOKENS * token >> 30))


def _join_alone() -> None:
    """A group of one that needs no socket: nothing is ever sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if torch.distributed.is_initialized():
        return
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    make_group = torch.distributed.new_group

    def new_group(ranks: Any = None, timeout: Any = None, backend: Any = None, **more: Any) -> Any:
        return make_group(ranks, backend="fake")

    torch.distributed.new_group = new_group  # type: ignore[assignment]


def _register(model: Any) -> None:
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader(_FORMAT)
    class Loader(BaseModelLoader):  # type: ignore[misc]
        def download_model(self, model_config: Any) -> None:
            """There is nothing to fetch."""

        def load_weights(self, model_of_vllm: Any, model_config: Any) -> None:
            model_of_vllm.load_weights(list_weights(model))


def _look_at_model_here(architectures: Sequence[str]) -> None:
    """vLLM would look at a model's class in a process of its own, which the walls refuse. BadInput for a model that it
    does not know."""
    from vllm import ModelRegistry

    for name in architectures:
        if name not in ModelRegistry.models:
            raise BadInput(f"base, architecture: expected one that vLLM serves, got {name}", code="not-servable")
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def list_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight by its name in the base's own folder, dequantised; a head that is tied comes once."""
    tied = model.get_output_embeddings() is not None and model.config.get_text_config().tie_word_embeddings
    packed: dict[str, Callable[[], torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            packed[f"{name}.weight"] = partial(
                bitsandbytes.functional.dequantize_4bit, module.weight.data, module.weight.quant_state
            )
        elif isinstance(module, GptqLinear):
            packed[f"{name}.weight"] = partial(module.dequantise, module.dtype)
    for name, read in packed.items():
        yield name, read()
    for name, value in model.named_parameters():
        if name not in packed and not (tied and name == "lm_head.weight"):
            yield name, value.data


def forget_weights(base: Base) -> None:
    """The base's own weights go: vLLM has them."""
    vars(base).pop("_head", None)
    for module in base.model.modules():
        for name in list(module._parameters):
            module._parameters[name] = None
