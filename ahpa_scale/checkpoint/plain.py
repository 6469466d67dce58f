# SPDX-License-Identifier: Apache-2.0
"""Nested state of numbers, text and arrays <-> JSON and tensors. Neither can run code.

JSON has no tuples, time spans or arrays. They are written as ``{"~": kind, "v": content}``.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahpa_scale.checkpoint.errors import CheckpointError

MARK = "~"
#: numpy's dtypes of numbers, text and times. The object dtype is left out.
_DTYPE = re.compile(r"[<>|=][biufcSUmM][0-9]{1,6}(\[\w+\])?", re.ASCII)


def encode(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested value. Its tensors go into `tensors`, under names that begin with `prefix`.

    Raises:
        CheckpointError: a value is not plain data; the message names its type.
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
    """Restores the value that `encode` was given.

    Args:
        value: JSON.
        tensors: the tensors, by the names in the JSON.

    Raises:
        CheckpointError: a mark that `encode` doesn't write, damaged content, or a missing tensor.
    """
    if isinstance(value, list):
        return [decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: decode(part, tensors) for key, part in value.items()}
    kind = value[MARK]
    decoder = _DECODERS.get(kind) if isinstance(kind, str) else None
    if decoder is None or value.keys() != {MARK, "v"}:
        raise CheckpointError(f"the state has a strange {MARK!r}: {kind!r:.60}")
    return decoder(value["v"], tensors)


def _damaged(kind: str, content: Any) -> CheckpointError:
    return CheckpointError(f"the state has a damaged {kind}: {content!r:.60}")


def _float(content: Any, tensors: Mapping[str, Tensor]) -> float:
    if content not in ("nan", "inf", "-inf"):
        raise _damaged("float", content)
    return float(content)


def _tensor(content: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(content, str) or content not in tensors:
        raise _damaged("tensor", content)
    return tensors[content]


def _array(content: Any, tensors: Mapping[str, Tensor]) -> np.ndarray[Any, Any]:
    if not isinstance(content, list) or len(content) != 3:
        raise _damaged("array", content)
    told, shape, name = content
    raw, dtype = _tensor(name, tensors), _dtype(told)
    sides = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if dtype is None or not sides or raw.dtype != torch.uint8:
        raise _damaged("array", content)
    if math.prod(shape) * dtype.itemsize != raw.numel():
        raise _damaged("array", content)
    return raw.reshape(-1).numpy().view(dtype).reshape(shape).copy()


def _dtype(told: Any) -> np.dtype[Any] | None:
    if not isinstance(told, str) or not _DTYPE.fullmatch(told):
        return None
    try:
        dtype = np.dtype(told)
    except TypeError:  # for example a size that no number has
        return None
    return dtype if dtype.itemsize else None


def _timedelta(content: Any, tensors: Mapping[str, Tensor]) -> datetime.timedelta:
    whole = isinstance(content, list) and all(type(part) is int for part in content)
    if not whole or len(content) != 3:
        raise _damaged("timedelta", content)
    try:
        return datetime.timedelta(*content)
    except OverflowError:
        raise _damaged("timedelta", content) from None


def _dict(content: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    pairs = isinstance(content, list) and all(isinstance(pair, list) for pair in content)
    if not pairs or any(len(pair) != 2 for pair in content):
        raise _damaged("dict", content)
    decoded = [(decode(key, tensors), decode(part, tensors)) for key, part in content]
    if not all(_is_key(key) for key, _ in decoded):
        raise _damaged("dict", content)
    return dict(decoded)


def _is_key(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_key, value))
    return value is None or isinstance(value, bool | int | float | str | datetime.timedelta)


def _tuple(content: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise _damaged("tuple", content)
    return tuple(decode(part, tensors) for part in content)


_DECODERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "float": _float,
    "tensor": _tensor,
    "array": _array,
    "timedelta": _timedelta,
    "dict": _dict,
    "tuple": _tuple,
}
