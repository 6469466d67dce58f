# SPDX-License-Identifier: Apache-2.0
"""Offloaded state in files on a fast local disk, mapped into memory.

DeepSpeed's own way to NVMe reads and writes through an operator that has to be compiled, and takes
float32 weights and moments away between steps, so that averages and checkpoints could not read them
either. A mapped file is a tensor like any other: the kernel writes what has not been used for long,
and reads it when it is. Linux only, as DeepSpeed is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import torch
from torch import Tensor

from ahpa_scale.errors import UserError

#: Of each parameter that this rank updates: float32 weight, and two moments.
_BYTES = 12


class MappedFiles:
    """Moves tensors into files without a name: they go when the process goes, however it ends.

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
        """Refuses, before anything is trained, a disk that is too small for this node's ranks.

        Args:
            numel: elements that this rank updates.

        Raises:
            UserError: it is.
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
        """Has a tensor of the host keep its values in a file; all else about it stays.

        Raises:
            OSError: the disk is full.
        """
        numbytes = tensor.numel() * tensor.element_size()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            # Reserved, because a full disk would otherwise end the process by a signal, some day.
            os.posix_fallocate(file.fileno(), 0, numbytes)
            path = f"/proc/self/fd/{file.fileno()}"
            storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=numbytes)
        # torch's stubs know no storage of UntypedStorage.from_file.
        empty = torch.empty(0, dtype=tensor.dtype)
        mapped = empty.set_(storage).view(tensor.shape)  # type: ignore[arg-type]
        tensor.data = mapped.copy_(tensor)

    def move_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves what an optimizer has made for its steps, where it isn't in a file yet."""
        for entry in optimizer.state.values():
            for value in entry.values():
                if isinstance(value, Tensor) and value.dim() > 0 and not in_file(value):
                    self.move(value)


def in_file(tensor: Tensor) -> bool:
    """Whether a tensor's values are those of a mapped file."""
    return tensor.untyped_storage().filename is not None


def keep_in_files(zero: Any, files: MappedFiles, flats: list[Tensor], parameters: bool) -> None:
    """Moves offloaded state of DeepSpeed's ZeRO optimizer into files.

    Args:
        zero: the optimizer, configured to offload to the host's memory.
        files: where to.
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
        one = working is not None and working.data_ptr() == flat.data_ptr()
        files.move(flat)
        if working is None or not (one or parameters):
            continue
        if one:  # on a CPU what computes and what is updated are the same
            working.data = flat.data
        else:
            files.move(working)
        zero._unflatten_partitioned_parameters(number)  # its parameters are views of it
    if parameters:
        zero.param_groups_fp16_flat_cpu_memory.clear()
    # Stage 3 steps shard by shard, so no more than one shard's new moments are in memory.
    zero.optimizer.register_step_post_hook(lambda inner, *_: files.move_state(inner))
