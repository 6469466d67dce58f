# SPDX-License-Identifier: Apache-2.0
"""Our options, checked -> the dictionary that configures DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ahpa_scale.errors import UserError

STAGES = (1, 2, 3)
AUTOCAST = (None, torch.bfloat16, torch.float16)

Offload = Literal["optimizer", "parameters"]


@dataclass(frozen=True)
class ZeroSettings:
    """What ZeRO does (Rajbhandari et al., arXiv 1910.02054; offload: 2101.06840).

    Attributes:
        stage: 1 shards the optimizer's state, 2 gradients as well, 3 parameters as well.
        bucket: elements per reduction or gathering.
        offload: what moves to the host's memory between uses: ``optimizer`` (moments and float32
            weights), ``parameters`` (those as well, stage 3), or None.
        autocast: type of matrix products: torch.bfloat16, torch.float16 (with loss scaling), or
            None for float32 throughout.
        low_precision_traffic: send gradients (stage 3: and weights) of matrix products in the
            autocast type; the shards stay float32.
        offload_folder: folder on a local NVMe disk for memory-mapped files of offloaded tensors;
            None keeps them in the host's memory.

    Raises:
        UserError: an option out of range, or one that this stage can't use.
    """

    stage: int = 2
    bucket: int = 50_000_000
    offload: Offload | None = None
    autocast: torch.dtype | None = None
    low_precision_traffic: bool = False
    offload_folder: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UserError(f"there is no ZeRO stage {self.stage}; choose one of 1, 2, 3")
        if self.bucket < 1:
            raise UserError(f"bucket is {self.bucket}: give a number of elements above 0")
        if self.autocast not in AUTOCAST:
            raise UserError(
                f"autocast is {self.autocast}: choose torch.bfloat16, torch.float16 or None"
            )
        if self.low_precision_traffic and self.autocast is None:
            raise UserError("low_precision_traffic needs an autocast type, such as torch.bfloat16")
        if self.offload == "parameters" and self.stage < 3:
            raise UserError(
                f"stage {self.stage} can offload the optimizer only; take stage 3 for parameters"
            )

        if self.offload_folder is not None and self.offload is None:
            raise UserError("offload_folder is for what is offloaded: set offload as well")

    def deepspeed(self, max_norm: float | None) -> dict[str, Any]:
        """DeepSpeed's configuration.

        Composer owns micro-batches and calls ``backward`` itself. So DeepSpeed is told that a step
        has one micro-batch and that the caller decides when to step; its own accumulation would
        divide the gradients once more. Options whose defaults would change a result are written
        out.
        """
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.bucket,
            "overlap_comm": self.stage == 2,
            "contiguous_gradients": True,
        }
        if self.stage == 3:
            # It would replace torch's linear by one that rounds differently under autocast.
            zero["memory_efficient_linear"] = False
            zero["stage3_prefetch_bucket_size"] = self.bucket
        else:
            zero["allgather_bucket_size"] = self.bucket
        zero.update(self._offload())
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": max_norm or 0.0,
            "steps_per_print": 2**31,
            # Allow any torch optimizer, and do not replace it where it is offloaded.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            **self._precision(),
        }

    def _precision(self) -> dict[str, Any]:
        if self.autocast is None:
            return {}
        autocast: dict[str, Any] = {"enabled": True, "dtype": str(self.autocast).split(".")[1]}
        if not self.low_precision_traffic:
            # DeepSpeed's default sends weights of linear layers and convolutions in this type.
            autocast["lower_precision_safe_modules"] = []
        return {"torch_autocast": autocast}

    def _offload(self) -> dict[str, Any]:
        if self.offload is None:
            return {}
        # Pinned memory can't be moved to a disk.
        pin = torch.cuda.is_available() and self.offload_folder is None
        place: dict[str, Any] = {"device": "cpu", "pin_memory": pin}
        chosen = {"offload_optimizer": place}
        if self.offload == "parameters":
            chosen["offload_param"] = dict(place)
        return chosen
