"""llama.cpp through llama-cpp-python, as a peer of the serving bench. It has an environment of its own."""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import Any


class LlamaCpp:
    """A GGUF file on the CPU, with a thread for each core and otherwise default settings. `base`: the file's path."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        self._base = base
        self._model = self._load()

    def _load(self, adapter: str | None = None) -> Any:
        from llama_cpp import Llama

        threads = len(os.sched_getaffinity(0))
        settings = {"n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        return Llama(self._base, lora_path=adapter, **settings)

    def load(self, adapter: str) -> list[float]:
        """Load the model again with an adapter, which is a GGUF file."""
        self._model = self._load(adapter)
        return [1.0]

    def draw(self, ids: list[int], tokens: int) -> list[float]:
        """Answer greedily with `tokens` tokens. Return [seconds with those of the prompt, tokens drawn]."""
        self._model.reset()
        began = time.perf_counter()
        drawn = list(islice(self._model.generate(ids, temp=0.0), tokens))
        return [time.perf_counter() - began, float(len(drawn))]

    def logits(self, ids: list[int]) -> list[float]:
        """Return the logits after the last of these tokens."""
        self._model.reset()
        self._model.eval(ids)
        found: list[float] = self._model._ctx.get_logits_ith(-1)[: self._model.n_vocab()]
        return found

    def read(self, ids: list[int], count: int) -> list[float]:
        """Read the prompt `count` times, up to the logits after it. Return the seconds of each."""
        found = []
        for _ in range(count):
            # After a reset, the next evaluation discards the cache.
            self._model.reset()
            began = time.perf_counter()
            self._model.eval(ids)
            found.append(time.perf_counter() - began)
        return found
