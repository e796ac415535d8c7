"""PEFT and transformers' continuous batching, as peers of the serving bench."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Numbers = list[float]


class Peft:
    """PEFT over transformers with a decoding loop of our own: greedy, with a cache, logits for the last token only."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model, self._device = load_model(base, device, quantisation), device
        self._tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token

    def load(self, folders: list[str]) -> Numbers:
        from peft import PeftModel

        first, *others = folders
        name = Path(first).name
        # Adapters in the compute dtype make peft faster than the float32 that it would convert them to.
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
        """Answer with one adapter after another, the prompts of each in one batch."""
        began, drawn = time.perf_counter(), 0
        for slot in dict.fromkeys(slots):
            self._model.set_adapter(slot)
            mine = [prompt for prompt, other in zip(prompts, slots, strict=True) if other == slot]
            drawn += self._decode(mine, tokens)
        return [time.perf_counter() - began, float(drawn)]

    def mixed(self, prompts: list[str], slots: list[str], tokens: int) -> Numbers:
        """Answer all prompts in one batch, each with its own adapter."""
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
        # Prompts of one length need no mask. Attention is faster without one.
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
    """transformers' continuous batching over peft with one adapter, since requests cannot choose an adapter."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._peft = Peft(base, device, quantisation)
        self._manager: Any = None

    def load(self, folders: list[str]) -> Numbers:
        loaded = self._peft.load(folders)
        self._peft._model.set_adapter(Path(folders[0]).name)
        return loaded

    def answer(self, prompts: list[str], slots: list[str], tokens: int) -> Numbers:
        """Answer the prompts. The manager is started at the first call, with room for exactly these prompts."""
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
                raise RuntimeError(f"continuous batching failed: {result and result.error}")
            if result.is_finished():
                names.discard(result.request_id)
                drawn += len(result.generated_tokens)
        return [time.perf_counter() - began, float(drawn)]


def _render(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def load_model(base: str, device: str, quantisation: str) -> Any:
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
