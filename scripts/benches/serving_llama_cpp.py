"""llama.cpp in a process of its own, through llama-cpp-python; it is imported in an environment of its own."""

from __future__ import annotations

import os
import time


class LlamaCpp:
    """A GGUF file on the CPU: as many threads as cores, everything else as it comes. `base` is the file's path."""

    def __init__(self, base: str, device: str, quantisation: str) -> None:
        from llama_cpp import Llama

        threads = len(os.sched_getaffinity(0))
        self._model = Llama(base, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

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
