"""vLLM on the CPU, as a peer of the serving bench. It has an environment of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class Vllm:
    """vLLM's engine in this process, with the base in bf16, since it has no NF4 on a CPU."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        os.environ |= SETTINGS
        from vllm import LLM

        # No prefix caching, so that each prompt is computed, as by the others.
        self._model = LLM(
            base,
            dtype="bfloat16",
            enable_lora=True,
            max_loras=8,
            max_lora_rank=16,
            max_num_seqs=16,
            max_model_len=512,
            enable_prefix_caching=False,
        )
        self._adapters: dict[str, Any] = {}

    def load(self, folders: list[str]) -> list[float]:
        from vllm.lora.request import LoRARequest

        for number, folder in enumerate(folders, 1):
            adapter = LoRARequest(Path(folder).name, number, folder)
            self._model.llm_engine.add_lora(adapter)
            self._adapters[adapter.lora_name] = adapter
        return [float(len(folders))]

    def answer(self, prompts: list[str], slots: list[str | None], tokens: int) -> list[float]:
        """Answer all prompts at once. Return [seconds, tokens drawn]."""
        began = time.perf_counter()
        answers = self._chat(prompts, slots, tokens)
        return [time.perf_counter() - began, float(sum(len(one.outputs[0].token_ids) for one in answers))]

    def text(self, prompt: str, slot: str | None, tokens: int) -> str:
        text: str = self._chat([prompt], [slot], tokens)[0].outputs[0].text
        return text

    def _chat(self, prompts: list[str], slots: list[str | None], tokens: int) -> list[Any]:
        from vllm import SamplingParams

        return self._model.chat(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            lora_request=[None if slot is None else self._adapters[slot] for slot in slots],
            use_tqdm=False,
        )
