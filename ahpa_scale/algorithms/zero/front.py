# SPDX-License-Identifier: Apache-2.0
"""What stands where Composer expects DDP's wrapper: the model, through DeepSpeed's engine."""

from __future__ import annotations

from typing import Any

import composer.trainer.trainer
from composer.core import State
from torch import nn

from ahpa_scale.algorithms.composer_options import checkpoint_error
from ahpa_scale.algorithms.zero.partition import Partition


class ZeroFront(nn.Module):
    """A module whose forward pass is the engine's; ``module`` is the model itself, as under DDP.

    Args:
        model: the model that the engine wraps.
        engine: DeepSpeed's engine.
        partition: this rank's shards.
    """

    def __init__(self, model: nn.Module, engine: Any, partition: Partition) -> None:
        super().__init__()
        self.module = model
        # In a tuple, so that nn.Module doesn't adopt it: the engine holds the model once more.
        self._engine = (engine,)
        self.partition = partition

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine."""
        return self._engine[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass, with the engine's gathering and reducing around it."""
        return self.engine(*args, **kwargs)


def leave_front_alone() -> None:
    """Keeps Composer's Trainer from wrapping a `ZeroFront` in DDP; safe to repeat.

    With two or more ranks, Composer 0.32.1 wraps every model that is not FSDP's. No option or event
    prevents it, so the wrapping function is replaced in the module that calls it.
    """
    original = composer.trainer.trainer.prepare_ddp_module
    if getattr(original, "knows_zero", False):
        return

    def prepare(module: nn.Module, find_unused_parameters: bool) -> nn.Module:
        if isinstance(module, ZeroFront):
            return module
        wrapped: nn.Module = original(module, find_unused_parameters)
        return wrapped

    prepare.knows_zero = True  # type: ignore[attr-defined]
    composer.trainer.trainer.prepare_ddp_module = prepare


#: What ZeRO's user would lose in Composer's checkpoints.
SHARDS = "what ZeRO shards"


def refuse_composers_checkpoints(state: State) -> None:
    """Makes Composer's own saving and loading an error, on this State only.

    Composer 0.32.1 doesn't know ZeRO. At stage 3 it would save empty weights without a word, and at
    any stage the next step would overwrite what it loads.
    """

    def refuse(*_: object, **__: object) -> None:
        raise checkpoint_error(SHARDS)

    replaced: Any = state
    replaced.get_model_state_dict = replaced.load_model_state = refuse
