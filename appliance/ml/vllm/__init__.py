"""vLLM as an engine, with the same slots, requests and events.

vLLM reads these settings when its modules are imported. Here it starts no process, socket, plugin or compiler.
"""

from __future__ import annotations

import os

os.environ.update(
    {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
)
