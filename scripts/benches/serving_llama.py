"""llama.cpp's server as a peer of the serving bench: its adapter files, its process, and requests over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import httpx
import safetensors.numpy

from scripts.benches.llama_file import LLAMA, permute
from scripts.kit.ports import free_port

START_S = 120


def write_adapter(adapter: Path, base: Path, output: Path) -> None:
    """Write a peft adapter of a llama base as the GGUF file that llama.cpp loads, in float32."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(output, gguf.MODEL_ARCH_NAMES[LLAMA])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    for key, weight in safetensors.numpy.load_file(adapter / "adapter_model.safetensors").items():
        module, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        count = heads.get(module.rpartition(".")[2])
        if count and half == "lora_B":
            weight = permute(weight, count)
        writer.add_tensor(f"{names.get_name(module)}.weight.{half.lower()}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Server:
    """A running llama-server. `slots`: the names of its adapters' folders, in the order in which it loaded them."""

    def __init__(self, client: httpx.Client, slots: Sequence[str]) -> None:
        self._client, self._ids = client, {name: number for number, name in enumerate(slots)}

    def request(self, command: str, **arguments: Any) -> Any:
        """Run a command by its name, as `programs.Program` does."""
        return getattr(self, command)(**arguments)

    def answer(self, prompts: Sequence[str], slots: Sequence[str], tokens: int) -> list[float]:
        """Answer all prompts at once. Return [seconds, tokens drawn]."""
        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as threads:
            answers = list(threads.map(lambda prompt, slot: self._ask(prompt, slot, tokens), prompts, slots))
        return [time.perf_counter() - began, float(sum(one["usage"]["completion_tokens"] for one in answers))]

    def text(self, prompt: str, slot: str | None, tokens: int) -> str:
        """Return an answer's text; without a slot the base model answers."""
        text: str = self._ask(prompt, slot, tokens)["choices"][0]["message"]["content"]
        return text

    def _ask(self, prompt: str, slot: str | None, tokens: int) -> dict[str, Any]:
        """Return a greedy answer of exactly `tokens` tokens with one adapter. The server caches no prompt."""
        wanted = {
            "messages": [{"role": "user", "content": prompt}],
            "lora": [{"id": number, "scale": float(name == slot)} for name, number in self._ids.items()],
            "max_tokens": tokens,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        response = self._client.post("/v1/chat/completions", json=wanted)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def serving(binary: str, model: Path, base: Path, adapters: Sequence[Path], streams: int) -> Iterator[Server]:
    """Run a server of the GGUF `model`, which was converted from `base`, on loopback with 512 tokens a stream.

    Raises:
        RuntimeError: The server does not start. The message ends with its last output.
        OSError: There is no such program.
    """
    files = [path.with_suffix(".gguf") for path in adapters]
    for path, file in zip(adapters, files, strict=True):
        write_adapter(path, base, file)
    threads = f"{len(os.sched_getaffinity(0))}"
    # By default its idle threads spin longer than those of our engine, and starve each other under load.
    environment = {"GOMP_SPINCOUNT": "2000", **os.environ}
    port = free_port()
    command = [binary, "--model", f"{model}", "--host", "127.0.0.1", "--port", f"{port}", "--offline", "--no-webui"]
    command += ["--threads", threads, "--threads-batch", threads]
    command += ["--parallel", f"{streams}", "--ctx-size", f"{512 * streams}"]
    command += ["--lora-init-without-apply", *(word for file in files for word in ("--lora", f"{file}"))]
    limits = httpx.Limits(max_connections=streams)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=600, limits=limits) as client,
    ):
        try:
            if not _becomes_healthy(process, client):
                log.seek(0)
                output = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{binary}: the server did not start within {START_S} s: {output}")
            yield Server(client, [path.name for path in adapters])
        finally:
            process.kill()


def _becomes_healthy(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if client.get("/health").is_success:
                return True
        time.sleep(0.1)
    return False
