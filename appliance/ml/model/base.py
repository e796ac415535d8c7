"""Loads a converted base from local files with every dtype stated: the same in training and serving.

Norms, embeddings and head are kept in the compute dtype, as is the residual stream. The linear layers are NF4 with
double quantisation, or LLM.int8, or GPTQ as the folder has it, or as they are in the compute dtype, and multiply in it.
An adapter is only worth its evaluation on exactly this tuple.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from appliance.errors import BadInput
from appliance.ml.layers import packing
from appliance.ml.layers.architecture import find_architecture
from appliance.ml.layers.decoder import KEPT_BYTES
from appliance.ml.layers.fixed import FixedAttention
from appliance.ml.layers.head import Head, make_head
from appliance.ml.layers.packing import Pack
from appliance.ml.layers.positions import find_longest_short
from appliance.ml.layers.projections import Rows
from appliance.ml.layers.reader import Piece, Reader, Seen
from appliance.ml.layers.trees import Held, TreeAttention
from appliance.ml.model.chat import Chat, load_chat
from appliance.ml.model.folder import CONFIG_FILE, check_folder, read_quantisation
from appliance.ml.model.library import goes_through_library
from appliance.ml.model.machine import keeps_rows_apart
from appliance.ml.quantised.loading import load_arguments
from appliance.ml.quantised.nf4 import load_nf4, make_config
from appliance.ml.quantised.settings import NF4_FILE

QUANTISATIONS = ("nf4-double", "int8", "none", "gptq")
COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# bitsandbytes packs rows in blocks of this many for its bf16 kernel on the CPU.
_PACKED_ROWS = 32


@dataclass(frozen=True)
class Base:
    """A model in evaluation mode that needs no gradient, and the words that go with it.

    `autocast`: the dtype that float32 weights, which are trained themselves, multiply in.
    """

    model: Any
    chat: Chat
    device: str
    autocast: torch.dtype | None = None
    reader: Reader | None = None
    """The layers by hand, for many rows without gradients; None where the library's modules are at work."""

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def head(self) -> Head:
        """From what `hidden` and `read` give to logits; its weight is [vocabulary, hidden], in the compute dtype."""
        return self._head

    @cached_property
    def _head(self) -> Head:
        return replace(make_head(self.model), fixed=self.fixed)

    @cached_property
    def fixed(self) -> bool:
        """Whether packs go through products of one shape (`layers/fixed.py`), so that no row's bits depend on others.
        On a GPU they do not."""
        return self.device == "cpu" and not keeps_rows_apart(self.device)

    @property
    def longest_short(self) -> int | None:
        """Tokens from which on a sequence has other positions (`Positions`); None where it never has."""
        return find_longest_short(self.model.config)

    def is_long(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens has the positions of a long one."""
        return self.longest_short is not None and tokens > self.longest_short

    def hidden(self, **arguments: Any) -> torch.Tensor:
        """The last norm's output, [1, tokens, hidden], by the library's modules: everything but the head."""
        with self._multiplying():
            output: torch.Tensor = self.model.get_decoder()(**arguments).last_hidden_state
        return output

    def hidden_alone(self, ids: Sequence[int]) -> torch.Tensor:
        """[tokens, hidden] of one sequence by the library's modules and its own attention."""
        places = torch.arange(len(ids), device=self.device)
        return self.hidden(
            input_ids=torch.tensor([list(ids)], device=self.device), position_ids=places[None], use_cache=False
        )[0]

    @cached_property
    def library(self) -> bool:
        """Whether everything goes through the library's modules and its own attention: no table describes them."""
        return find_architecture(self.model) is None

    @cached_property
    def apart(self) -> bool:
        """Whether each sequence goes through the model by itself: in a pack the library would turn the positions of all
        by the longest one's, or add in an order that depends on the others."""
        return self.library or (self.reader is None and (self.fixed or self.longest_short is not None))

    @cached_property
    def reads_whole(self) -> bool:
        """Whether a prompt is read in one piece: what a recurrent layer holds goes on by a single token, and the
        library chooses a long sequence's positions by what it is shown."""
        kinds = {type(layer) for layer in DynamicCache(config=self.model.config).layers} if self.library else set()
        return not kinds <= {DynamicLayer, DynamicSlidingWindowLayer} or (self.apart and not self.library)

    @torch.inference_mode()
    def _read_apart(self, pack: Pack, first: int) -> torch.Tensor:
        """The tokens from `first` on: each chain of segments to its end, by itself."""
        continued = {start for segment in pack.segments for start, _ in segment.context}
        found: dict[int, torch.Tensor] = {}
        for segment in pack.segments:
            if segment.start in continued or segment.start < first:
                continue
            hidden = self.hidden_alone([token for start, stop in segment.spans for token in pack.ids[start:stop]])
            for (start, _), part in zip(
                segment.spans, torch.split(hidden, [stop - start for start, stop in segment.spans]), strict=True
            ):
                found.setdefault(start, part)
        return torch.cat([found[segment.start] for segment in pack.segments if segment.start >= first])

    def read_pack(self, pack: Pack, *, start: int = 0, held: Held | None = None) -> torch.Tensor:
        """[tokens, hidden] of a pack from the token `start` on, without gradients; see `TreeAttention`. On a CPU no
        sequence's bits depend on the others."""
        if self.apart:
            return self._read_apart(pack, start)
        long = [False] * len(pack.ids) if self.longest_short is None else pack.find_long(self.longest_short)
        attention = FixedAttention if self.fixed else TreeAttention
        seen = attention(pack, self.device, start=start, held=held)
        return self.read(
            pack.ids[start:], pack.positions[start:], seen, long[start:], "fixed" if self.fixed else "many"
        )

    @torch.inference_mode()
    def read(
        self, ids: Sequence[int], positions: Sequence[int], seen: Seen, long: Sequence[bool], rows: Rows = "many"
    ) -> torch.Tensor:
        """[tokens, hidden] of tokens at these positions, without gradients; `long` marks those of a long sequence,
        `rows` is the reader's."""
        if self.reader is not None:
            return self.reader.hidden(ids, positions, seen, long, rows)
        return self.hidden(
            input_ids=torch.tensor([list(ids)], device=self.device),
            position_ids=torch.tensor([list(positions)], device=self.device),
            use_cache=False,
            rows=seen,
        )[0]

    def read_each(self, pieces: Sequence[Piece], rows: Rows = "many") -> torch.Tensor:
        """The same for pieces of one sequence, which follow one another: [tokens of all, hidden]."""
        if self.reader is not None:
            return torch.cat(self.reader.hidden_each(pieces, rows))
        return torch.cat([self.read(one.ids, one.positions, one.seen, one.long) for one in pieces])

    def _multiplying(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)


def load_base(
    folder: Path,
    *,
    quantisation: str,
    compute_dtype: str,
    device: str,
    trainable: bool = False,
    packs: bool = True,
    reads: bool = False,
    keeps: bool = True,
) -> Base:
    """A base from a converted folder; BadInput for anything but local safetensors and the tuples we know.

    `trainable`: for training the weights themselves, which are float32 then: a step is lost in bfloat16's rounding.
    `packs`: whether bitsandbytes may repack a layer's weights when it first answers. A method that dequantises them
    again in every pass (DoRA) would read noise then, and nobody would say so.
    `reads`: whether many rows go through the layers by hand, where the table of architectures covers them. `keeps`:
    whether they keep a small model's weights dequantised, which takes four times the memory of its 4-bit weights.
    """
    if quantisation not in QUANTISATIONS:
        raise BadInput(f"base, quantisation: expected {' or '.join(QUANTISATIONS)}, got {quantisation!r}")
    if compute_dtype not in COMPUTE_DTYPES:
        raise BadInput(f"base, compute dtype: expected {' or '.join(COMPUTE_DTYPES)}, got {compute_dtype!r}")
    check_folder(folder, sealed=True)
    found = read_quantisation(folder)
    gptq = None if found is None else found.gptq
    if (gptq is not None) != (quantisation == "gptq"):
        got = "a folder without it" if gptq is None else "a folder in GPTQ"
        raise BadInput(f"base, quantisation: expected weights for {quantisation}, got {got}")
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    dtype = COMPUTE_DTYPES[compute_dtype]
    # None is the library's own choice: ours knows neither its masks nor what some models add to their scores.
    attention = None if goes_through_library(config) else packing.ATTENTION
    if quantisation == "nf4-double" and (folder / NF4_FILE).exists():
        model = load_nf4(folder, dtype, device, attention)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder.absolute()),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32 if trainable else dtype,
            device_map={"": device},
            attn_implementation=attention,
            **(load_arguments(folder, gptq) or {"quantization_config": _quantise(quantisation, dtype)}),
        )
    model.requires_grad_(False)
    model.eval()
    _still(model)
    _choose_kernels(model, dtype, packs)
    reader = _make_reader(model, KEPT_BYTES if keeps else 0) if reads else None
    return Base(model, load_chat(folder), device, dtype if trainable and dtype != torch.float32 else None, reader)


def _still(model: Any) -> None:
    """Takes out what a published configuration draws at random in training, its own dropout and jitter: what is drawn
    is for the recipe to say, and in a private run the masks of one row would depend on how many were drawn before."""
    for holder in (model.config, *model.modules()):
        for name, value in list(vars(holder).items()):
            if ("drop" in name or "jitter" in name) and type(value) in (int, float):
                setattr(holder, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0


def _make_reader(model: Any, kept_bytes: int) -> Reader | None:
    architecture = find_architecture(model)
    kinds = {type(module).__name__ for module in model.get_decoder().layers.modules() if hasattr(module, "in_features")}
    if architecture is None or not kinds <= {"Linear", "Linear4bit", "GptqLinear"}:
        return None
    return Reader(model, architecture, kept_bytes=kept_bytes)


def _quantise(quantisation: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantisation == "none":
        return None
    if quantisation == "int8":
        # Said at every call: between int8 and the compute dtype it goes through float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return make_config(dtype)


def _choose_kernels(model: Any, dtype: torch.dtype, packs: bool) -> None:
    """bitsandbytes has a bf16 kernel for the CPU that ignores the compute dtype and asserts whole blocks of rows."""
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and (
            not packs or dtype != torch.bfloat16 or module.out_features % _PACKED_ROWS
        ):
            module.support_avx512bf16_for_cpu = False
