"""Loading of a converted base from local files, with explicit dtypes, the same for training and serving.

Norms, embeddings, head and residual stream have the compute dtype. The linear layers are NF4 with double quantisation,
LLM.int8, GPTQ as stored in the folder, or unquantised, and multiply in the compute dtype. An adapter's evaluation is
valid only for the same combination of quantisation and dtype.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from appliance.domain.planning.packs import KEPT_BYTES
from appliance.domain.recipe.methods import METHODS
from appliance.errors import BadInput
from appliance.ml.layers import packing
from appliance.ml.layers.architecture import find_architecture
from appliance.ml.layers.decoder import DecoderReader, Piece
from appliance.ml.layers.fixed import FixedAttention, Held, TreeAttention
from appliance.ml.layers.head import Head, make_head
from appliance.ml.layers.packing import Pack, find_longest_short
from appliance.ml.layers.projections import Rows
from appliance.ml.model.chat import Chat, load_chat
from appliance.ml.model.folder import CONFIG_FILE, check_folder, read_quantisation
from appliance.ml.model.library import uses_library_layers
from appliance.ml.model.machine import has_independent_rows
from appliance.ml.quantised.loading import load_arguments
from appliance.ml.quantised.nf4 import BLOCK, NF4_FILE, load_nf4, make_config

QUANTISATIONS = ("nf4-double", "int8", "none", "gptq")
COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Number of rows in a block of bitsandbytes' bf16 kernel for the CPU.
_PACKED_ROWS = 32


@dataclass(frozen=True)
class LoadedBase:
    """A model in evaluation mode without gradients, with its tokenizer and template.

    `autocast` is the dtype in which float32 weights that are themselves trained multiply.
    """

    model: Any
    chat: Chat
    device: str
    autocast: torch.dtype | None = None
    reader: DecoderReader | None = None
    """Hand-written layers for many rows without gradients; None if the library's modules compute them."""

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def head(self) -> Head:
        """Return the head, which turns the output of `hidden` and `read` into logits.

        Its weight is [vocabulary, hidden], in the compute dtype.
        """
        return self._head

    @cached_property
    def _head(self) -> Head:
        return replace(make_head(self.model), fixed=self.uses_fixed_shapes)

    @cached_property
    def uses_fixed_shapes(self) -> bool:
        """True if packs go through products of one shape (`layers/fixed.py`), which makes each row's bits independent.

        That is the case on a CPU whose products mix rows (AMX), and never on a GPU.
        """
        return self.device == "cpu" and not has_independent_rows(self.device)

    @property
    def longest_short(self) -> int | None:
        """Largest number of tokens that use the first set of rotary angles (`Positions`); None if there is one set."""
        return find_longest_short(self.model.config)

    def is_long(self, tokens: int) -> bool:
        """Return True if a sequence of this many tokens uses the rotary angles of long sequences."""
        return self.longest_short is not None and tokens > self.longest_short

    def hidden(self, **arguments: Any) -> torch.Tensor:
        """Return the last norm's output, [1, tokens, hidden], computed by the library's modules."""
        with self._multiplying():
            output: torch.Tensor = self.model.get_decoder()(**arguments).last_hidden_state
        return output

    def hidden_alone(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the last norm's output, [tokens, hidden], of one sequence, computed by the library alone."""
        places = torch.arange(len(ids), device=self.device)
        return self.hidden(
            input_ids=torch.tensor([list(ids)], device=self.device), position_ids=places[None], use_cache=False
        )[0]

    @cached_property
    def uses_library_modules(self) -> bool:
        """True if the library's modules compute everything, since the table does not cover the model."""
        return find_architecture(self.model) is None

    @cached_property
    def reads_sequences_separately(self) -> bool:
        """True if each sequence goes through the model separately.

        In a pack the library would choose the rotary angles of all sequences by the longest one, or add in an order
        that depends on the other sequences.
        """
        return self.uses_library_modules or (
            self.reader is None and (self.uses_fixed_shapes or self.longest_short is not None)
        )

    @cached_property
    def reads_whole(self) -> bool:
        """True if a prompt must be read in one piece.

        Recurrent layers continue from their state by single tokens only, and the library chooses the rotary angles of a
        long sequence by the tokens of the call.
        """
        if not self.uses_library_modules:
            return self.reads_sequences_separately
        kinds = {type(layer) for layer in DynamicCache(config=self.model.config).layers}
        return not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    @torch.inference_mode()
    def _read_separately(self, pack: Pack, first: int) -> torch.Tensor:
        """Return the hidden states of the tokens from `first` on, with each chain of segments read separately."""
        continued = {start for segment in pack.segments for start, _ in segment.context}
        parts: dict[int, torch.Tensor] = {}
        for segment in pack.segments:
            if segment.start in continued or segment.start < first:
                continue
            hidden = self.hidden_alone([token for start, stop in segment.spans for token in pack.ids[start:stop]])
            for (start, _), part in zip(
                segment.spans, torch.split(hidden, [stop - start for start, stop in segment.spans]), strict=True
            ):
                parts.setdefault(start, part)
        return torch.cat([parts[segment.start] for segment in pack.segments if segment.start >= first])

    def read_pack(self, pack: Pack, *, start: int = 0, held: Held | None = None) -> torch.Tensor:
        """Return the last norm's output, [tokens, hidden], of a pack from the token `start` on, without gradients.

        `held` is as in `TreeAttention`. On a CPU the bits of a sequence do not depend on the other sequences.
        """
        if self.reads_sequences_separately:
            return self._read_separately(pack, start)
        long = [False] * len(pack.ids) if self.longest_short is None else pack.find_long(self.longest_short)
        attention = FixedAttention if self.uses_fixed_shapes else TreeAttention
        seen = attention(pack, self.device, start=start, held=held)
        piece = Piece(pack.ids[start:], pack.positions[start:], seen, long[start:])
        return self.read([piece], "fixed" if self.uses_fixed_shapes else "many")

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece], rows: Rows = "many") -> torch.Tensor:
        """Return the last norm's output, [tokens of all pieces, hidden], of consecutive pieces, without gradients.

        `rows` is as in `Projections.multiply_each`; the library's modules have only one way.
        """
        if self.reader is not None:
            return torch.cat(self.reader.read(pieces, rows))
        hidden = [
            self.hidden(
                input_ids=torch.tensor([list(piece.ids)], device=self.device),
                position_ids=torch.tensor([list(piece.positions)], device=self.device),
                use_cache=False,
                rows=piece.seen,
            )[0]
            for piece in pieces
        ]
        return torch.cat(hidden)

    def _multiplying(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)


def load_base(
    folder: Path,
    *,
    quantisation: str,
    compute_dtype: str,
    device: str,
    trains_weights: bool = False,
    may_repack: bool = True,
    own_layers: bool = False,
    keeps_dequantised: bool = True,
) -> LoadedBase:
    """Load a base from a converted folder.

    - `trains_weights`: store the weights in float32, since bfloat16 would round small steps away.
    - `may_repack`: let bitsandbytes repack a layer's weights at its first use. A method that dequantises them again in
      every pass (DoRA) would then read wrong values without an error.
    - `own_layers`: use hand-written layers for many rows, if the table of architectures covers the model.
    - `keeps_dequantised`: let these layers keep a small model's weights dequantised, which takes four times the memory
      of its 4-bit weights.

    Raises:
        BadInput: the folder has other content than local safetensors, or the combination of settings is not supported.
    """
    if quantisation not in QUANTISATIONS:
        raise BadInput(f"base, quantisation: expected {' or '.join(QUANTISATIONS)}, got {quantisation!r}")
    if compute_dtype not in COMPUTE_DTYPES:
        raise BadInput(f"base, compute dtype: expected {' or '.join(COMPUTE_DTYPES)}, got {compute_dtype!r}")
    check_folder(folder, sealed=True)
    quantised = read_quantisation(folder)
    gptq = None if quantised is None else quantised.gptq
    if (gptq is not None) != (quantisation == "gptq"):
        got = "a folder without it" if gptq is None else "a folder in GPTQ"
        raise BadInput(f"base, quantisation: expected weights for {quantisation}, got {got}")
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    dtype = COMPUTE_DTYPES[compute_dtype]
    # None is the library's own choice: this project's attention supports neither its masks nor the terms that some
    # models add to their scores.
    attention = None if uses_library_layers(config) else packing.ATTENTION
    if quantisation == "nf4-double" and (folder / NF4_FILE).exists():
        model = load_nf4(folder, dtype, device, attention)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder.absolute()),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32 if trains_weights else dtype,
            device_map={"": device},
            attn_implementation=attention,
            **(load_arguments(folder, gptq) or {"quantization_config": _quantise(quantisation, dtype)}),
        )
    model.requires_grad_(False)
    model.eval()
    _disable_randomness(model)
    _choose_kernels(model, dtype, may_repack)
    reader = _make_reader(model, KEPT_BYTES if keeps_dequantised else 0) if own_layers else None
    autocast = dtype if trains_weights and dtype != torch.float32 else None
    return LoadedBase(model, load_chat(folder), device, autocast, reader)


def load_for(
    folder: Path, settings: Mapping[str, Any], *, for_training: bool = False, keeps_dequantised: bool = True
) -> LoadedBase:
    """Load a base for a recipe, or for an engine's settings: quantisation, compute_dtype and device.

    Without a recipe's method, the adapters are plain LoRA.
    """
    method = settings.get("method", "lora")
    is_plain = METHODS[method].plain
    return load_base(
        folder,
        quantisation=settings["quantisation"],
        compute_dtype=settings["compute_dtype"],
        device=settings["device"],
        trains_weights=for_training and method == "full",
        may_repack=is_plain,
        own_layers=is_plain and not for_training,
        keeps_dequantised=keeps_dequantised,
    )


def _disable_randomness(model: Any) -> None:
    """Set the dropout and jitter of a published configuration to zero.

    Randomness is determined by the recipe only. In a private run the masks of one row would otherwise depend on how
    many random numbers were drawn before.
    """
    for holder in (model.config, *model.modules()):
        for name, value in list(vars(holder).items()):
            if ("drop" in name or "jitter" in name) and type(value) in (int, float):
                setattr(holder, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0


def _make_reader(model: Any, kept_bytes: int) -> DecoderReader | None:
    architecture = find_architecture(model)
    kinds = {type(module).__name__ for module in model.get_decoder().layers.modules() if hasattr(module, "in_features")}
    if architecture is None or not kinds <= {"Linear", "Linear4bit", "GptqLinear"}:
        return None
    return DecoderReader(model, architecture, kept_bytes=kept_bytes)


def _quantise(quantisation: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantisation == "none":
        return None
    if quantisation == "int8":
        # The library warns at every call that int8 products go through float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return make_config(dtype)


def _choose_kernels(model: Any, dtype: torch.dtype, may_repack: bool) -> None:
    """Disable bitsandbytes' packed bf16 kernel for the CPU for layers that it does not fit.

    The kernel ignores the compute dtype, and fails if inputs or outputs are not a whole number of blocks.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and (
            not may_repack
            or dtype != torch.bfloat16
            or module.out_features % _PACKED_ROWS
            or module.in_features % BLOCK
        ):
            module.support_avx512bf16_for_cpu = False
