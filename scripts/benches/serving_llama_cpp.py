"""llama.cpp in a process of its own, through llama-cpp-python; it is imported in an environment of its own."""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import Any


class LlamaCpp:
    """A GGUF file on the CPU: as many threads as cores, everything else as it comes. `base` is the file's path."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._base = base
        self._model = self._load()

    def _load(self, adapter: str | None = None) -> Any:
        from llama_cpp import Llama

        threads = len(os.sched_getaffinity(0))
        settings = {"n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        return Llama(self._base, lora_path=adapter, **settings)

    def load(self, adapter: str) -> list[float]:
        """From here on with this adapter, a GGUF file."""
        self._model = self._load(adapter)
        return [1.0]

    def draw(self, ids: list[int], tokens: int) -> list[float]:
        """One greedy answer of so many tokens, its prompt included: [seconds, tokens drawn]."""
        self._model.reset()
        began = time.perf_counter()
        drawn = list(islice(self._model.generate(ids, temp=0.0), tokens))
        return [time.perf_counter() - began, float(len(drawn))]

    def logits(self, ids: list[int]) -> list[float]:
        """Behind the last of these tokens."""
        self._model.reset()
        self._model.eval(ids)
        found: list[float] = self._model._ctx.get_logits_ith(-1)[: self._model.n_vocab()]
        return found

    def read(self, ids: list[int], count: int) -> list[float]:
        """So many times the same prompt, up to the logits behind it; seconds each."""
        found = []
        for _ in range(count):
            # The next evaluation drops what is kept behind the place 0.
            self._model.reset()
            began = time.perf_counter()
            self._model.eval(ids)
            found.append(time.perf_counter() - began)
        return found
