# SPDX-License-Identifier: Apache-2.0
"""Offloaded state in files on a fast local disk, mapped into memory.

DeepSpeed's own NVMe offload needs a compiled operator. It also takes float32 weights and moments
away between steps, so averages and checkpoints could not read them. A mapped file is a tensor like
any other: the kernel writes out what is long unused, and reads it back on use. Linux only, as
DeepSpeed is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError

#: Bytes per parameter that this rank updates: a float32 weight and two moments.
_BYTES = 12


class MappedFiles:
    """Moves tensors into files without a name: they vanish with the process, however it ends.

    Args:
        folder: on a local disk; made where it is missing.

    Raises:
        UserError: it can't be written to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"offload_folder {folder}: {error.strerror}") from None

    def check_room(self, numel: int) -> None:
        """Refuses a disk that is too small for this node's ranks, before training starts.

        Args:
            numel: elements that this rank updates.

        Raises:
            UserError: the disk is too small.
        """
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        wanted, free = ranks * _BYTES * numel, shutil.disk_usage(self.folder).free
        if wanted > free:
            raise UserError(
                f"offload_folder {self.folder} has {free / 1e6:,.0f} MB free, and the node's ranks "
                f"({ranks}) need {wanted / 1e6:,.0f} MB"
            )

    @torch.no_grad()
    def move(self, tensor: Tensor) -> None:
        """Moves a host tensor's values into a file; all else about it stays.

        Raises:
            OSError: the disk is full.
        """
        numbytes = tensor.numel() * tensor.element_size()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            # Reserved now: otherwise a disk that fills up later kills the process by a signal.
            os.posix_fallocate(file.fileno(), 0, numbytes)
            path = f"/proc/self/fd/{file.fileno()}"
            storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=numbytes)
        # torch's stubs don't accept what UntypedStorage.from_file returns.
        empty = torch.empty(0, dtype=tensor.dtype)
        mapped = empty.set_(storage).view(tensor.shape)  # type: ignore[arg-type]
        tensor.data = mapped.copy_(tensor)

    def move_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the tensors of an optimizer's state that aren't in a file yet."""
        for entry in optimizer.state.values():
            for value in entry.values():
                if isinstance(value, Tensor) and value.dim() > 0 and not in_file(value):
                    self.move(value)


def in_file(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in a mapped file."""
    return tensor.untyped_storage().filename is not None


def keep_in_files(zero: Any, files: MappedFiles, flats: list[Tensor], parameters: bool) -> None:
    """Moves offloaded state of DeepSpeed's ZeRO optimizer into files.

    Args:
        zero: the optimizer, configured to offload to the host's memory.
        files: the target.
        flats: its float32 shards.
        parameters: whether weights that compute are offloaded as well (stage 3).

    Raises:
        UserError: too little room.
        OSError: a disk that others have filled meanwhile.
    """
    files.check_room(sum(flat.numel() for flat in flats))
    workings = list(getattr(zero, "fp16_partitioned_groups_flat", ()))
    for number, flat in enumerate(flats):
        working = workings[number] if workings else None
        shared = working is not None and working.data_ptr() == flat.data_ptr()
        files.move(flat)
        if working is None or not (shared or parameters):
            continue
        if shared:  # on a CPU the weights that compute are the float32 shards
            working.data = flat.data
        else:
            files.move(working)
        zero._unflatten_partitioned_parameters(number)  # parameters are views of the shard
    if parameters:
        zero.param_groups_fp16_flat_cpu_memory.clear()
    # Stage 3 steps shard by shard, so no more than one shard's new moments are in memory.
    zero.optimizer.register_step_post_hook(lambda inner, *_: files.move_state(inner))
