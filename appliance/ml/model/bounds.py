"""Bounds on the values of a model's configuration, checked before memory is allocated or loops run. No torch.

Each bound is several times that of the largest published model of the supported architectures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from appliance.errors import BadInput

MAX_CONTEXT = 1 << 22
MAX_VOCABULARY = 1 << 20
MAX_TOKEN_BYTES = 4_096
_DIMENSIONS = {
    "num_hidden_layers": 1_024,
    "hidden_size": 65_536,
    "intermediate_size": 1 << 19,
    "num_attention_heads": 1_024,
    "vocab_size": MAX_VOCABULARY,
    "max_position_embeddings": MAX_CONTEXT,
}
_MOST = {
    **_DIMENSIONS,
    "num_key_value_heads": 1_024,
    "head_dim": 4_096,
    "original_max_position_embeddings": MAX_CONTEXT,
    "max_window_layers": 1_024,
    "num_labels": 1_024,
}
_MOST_OTHER = 1 << 20
_MOST_REAL = 1e12
_MAX_NODES = 20_000
_MAX_DEPTH = 8
# Fields that are real numbers even if written without a decimal point; used only as the base of an exponent.
_REAL = ("rope_theta",)


def check_claims(config: Mapping[str, Any], what: str) -> None:
    """Check that the numbers of a configuration are within bounds and its dimensions are positive whole numbers.

    Raises:
        BadInput: a value is out of bounds; the message names the first one.
    """
    for name, most in _DIMENSIONS.items():
        _check_whole(config.get(name), most, f"{what}, {name}")
    for place, (name, value) in enumerate(_walk(config, what)):
        if place > _MAX_NODES:
            raise BadInput(f"{what}: expected at most {_MAX_NODES} values, got more")
        if isinstance(value, float) or name in _REAL:
            _check_real(value, f"{what}, {name}")
        elif isinstance(value, int):
            most = _MOST.get(name, _MOST_OTHER)
            if abs(value) > most:
                raise BadInput(f"{what}, {name}: expected at most {most}, got {value}")


def _walk(value: Any, what: str, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every scalar value with the name of its field."""
    if depth > _MAX_DEPTH:
        raise BadInput(f"{what}, {name}: expected values at most {_MAX_DEPTH} deep, got more")
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _walk(member, what, key, depth + 1)
    elif isinstance(value, list):
        for member in value:
            yield from _walk(member, what, name, depth + 1)
    else:
        yield name, value


def _check_whole(value: object, most: int, what: str) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise BadInput(f"{what}: expected a whole number from 1 to {most}, got {value!r:.40}")


def _check_real(value: object, what: str) -> None:
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= _MOST_REAL):
        raise BadInput(f"{what}: expected a number up to {_MOST_REAL:g}, got {value!r:.40}")


def count_least_parameters(config: Mapping[str, Any]) -> int:
    """Return the smallest number of parameters that these dimensions imply: embeddings, attention, feed-forward."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    keys = config.get("num_key_value_heads") or heads
    layer = 2 * hidden * size * (heads + keys) + 3 * hidden * (
        config.get("shared_intermediate_size") or config["intermediate_size"]
    )
    return int(config["vocab_size"] * hidden + config["num_hidden_layers"] * layer)


def check_weights(config: Mapping[str, Any], most: int, what: str) -> None:
    """Check that the files can hold the weights that the configuration implies; `most` is the largest possible number.

    Raises:
        BadInput: the configuration implies more weights.
    """
    least = count_least_parameters(config)
    if least > most:
        raise BadInput(f"{what}: expected dimensions of the weights that are there, at most {most}, got {least}")


@contextmanager
def refuse_panics(what: str) -> Iterator[None]:
    """Turn a panic of a Rust library into BadInput; `what` has the form `where: expected X`."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise BadInput(f"{what}, got: {str(error)[:200]}") from None
