"""Start of vLLM in this process, without a socket, another process, files of its own, or a compiler.

vLLM has exactly the weights that the adapter was trained and evaluated with: 4-bit layers are dequantised to the
compute dtype. Only its kernels and the order of its sums differ.
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

from appliance.domain.evaluation.quality import VLLM_SLOTS
from appliance.errors import BadInput, Unavailable
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.quantised.linear import GptqLinear

RANK = 64
"""Largest rank of an adapter."""
ROWS = 64
_CACHE_TOKENS = 1 << 16
_FORMAT = "appliance"


def start(folder: Path, *, quantisation: str, compute_dtype: str) -> tuple[LoadedBase, Any]:
    """Return the base, whose weights vLLM has, and vLLM's engine.

    Raises:
        BadInput: vLLM does not support the base.
        Unavailable: vLLM is not installed.
    """
    if quantisation == "int8":
        raise BadInput("base, quantisation: expected nf4-double, gptq or none with vLLM, got int8")
    base = load_base(folder, quantisation=quantisation, compute_dtype=compute_dtype, device="cpu")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(base.model.config))
    _join_single_process_group()
    # vLLM's modules need this name at import; in eager mode the compiler is never called.
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
    # The sandbox has no shared memory, which a lock between processes needs, and does not allow lscpu to start.
    uniproc_executor.Lock = threading.Lock
    cpu_resource_utils._get_cpu_list = cpu_resource_utils._synthesize_cpu_list
    _register(base.model)
    _register_model_class(base.model.config.architectures)
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
        # The cache key has slot and salt besides the tokens (`engine.py`).
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
    """Return the number format in which vLLM multiplies, in words."""
    return compute_dtype if quantisation == "none" else f"{quantisation} as {compute_dtype}"


def _cache_gib(config: Any) -> int:
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token: int = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head
    return max(1, -(-_CACHE_TOKENS * token >> 30))


def _join_single_process_group() -> None:
    """Create a process group of one process, which needs no socket."""
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
            """Do nothing, since the weights are in memory."""

        def load_weights(self, model_of_vllm: Any, model_config: Any) -> None:
            model_of_vllm.load_weights(list_weights(model))


def _register_model_class(architectures: Sequence[str]) -> None:
    """Register the model's class directly; vLLM would inspect it in another process, which the sandbox refuses."""
    from vllm import ModelRegistry

    for name in architectures:
        if name not in ModelRegistry.models:
            raise BadInput(f"base, architecture: expected one that vLLM serves, got {name}", code="not-servable")
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def list_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight by its name in the base's own folder, dequantised; a tied head is yielded once."""
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


def forget_weights(base: LoadedBase) -> None:
    """Drop the base's own weights, since vLLM has them."""
    vars(base).pop("_head", None)
    for module in base.model.modules():
        for name in list(module._parameters):
            module._parameters[name] = None
