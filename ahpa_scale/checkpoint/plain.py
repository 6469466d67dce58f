# SPDX-License-Identifier: Apache-2.0
"""Nested state of numbers, text and arrays <-> JSON and tensors: nothing that could run code.

JSON has no tuples, clocks or arrays; such a value is written as ``{"~": kind, "v": content}``.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahpa_scale.checkpoint.errors import CheckpointError

MARK = "~"


def encode(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested value; its tensors go into `tensors` under names that begin with `prefix`.

    Raises:
        CheckpointError: something that is no plain data; the message says what and where.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {MARK: "float", "v": str(value)}
    if isinstance(value, Tensor):
        name = f"{prefix}{len(tensors)}"
        tensors[name] = value.detach()
        return {MARK: "tensor", "v": name}
    if isinstance(value, np.ndarray):
        raw = torch.from_numpy(np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy())
        told = [value.dtype.str, list(value.shape), encode(raw, prefix, tensors)["v"]]
        return {MARK: "array", "v": told}
    if isinstance(value, np.generic):
        return encode(value.item(), prefix, tensors)
    if isinstance(value, datetime.timedelta):
        return {MARK: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, Mapping):
        pairs = [[key, encode(part, prefix, tensors)] for key, part in value.items()]
        if all(isinstance(key, str) for key, _ in pairs) and MARK not in value:
            return dict(pairs)
        return {MARK: "dict", "v": [[encode(key, prefix, tensors), part] for key, part in pairs]}
    if isinstance(value, list | tuple):
        parts = [encode(part, prefix, tensors) for part in value]
        return parts if isinstance(value, list) else {MARK: "tuple", "v": parts}
    raise CheckpointError(f"{type(value).__name__} is no plain data, and is not saved")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        CheckpointError: a mark that `encode` doesn't write, or a tensor that is not there.
    """
    if isinstance(value, list):
        return [decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: decode(part, tensors) for key, part in value.items()}
    try:
        return _decode_marked(value[MARK], value["v"], tensors)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the state has a damaged {value[MARK]!r}: {error}") from None


def _decode_marked(kind: str, content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        dtype, shape, name = content
        return tensors[name].numpy().view(np.dtype(dtype)).reshape(shape).copy()
    if kind == "timedelta":
        days, seconds, microseconds = content
        return datetime.timedelta(days, seconds, microseconds)
    if kind == "dict":
        return {decode(key, tensors): decode(part, tensors) for key, part in content}
    if kind == "tuple":
        return tuple(decode(part, tensors) for part in content)
    raise KeyError(f"unknown kind {kind!r}")
