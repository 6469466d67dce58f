# SPDX-License-Identifier: Apache-2.0
"""Shards parameters, gradients, optimizer state and averages over the ranks by torch's
``fully_shard`` (FSDP2); HSDP shards inside a node and replicates across nodes.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from composer.core import Algorithm, Event, State
from composer.distributed.fsdp2_utils import sync_optimizer_and_model_params
from composer.loggers import Logger
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ahpa_scale.errors import UserError
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.torch_version import average_on_gloo

REPLICATE, SHARD = "replicate", "shard"


class FullyShard(Algorithm):
    """Shards a `DiffusionGenerator` with FSDP2 before a checkpoint is loaded.

    Composer's own FSDP2 path is not used. It needs an object under one exact key (any other
    spelling silently trains with DDP), overwrites a two-dimensional mesh, and shards containers
    that have no forward pass. Acting between Composer's ``INIT`` and its loading needs none of its
    internals: Composer does not wrap a model that is already sharded.

    Every block is one group of parameters, so that the next block's weights arrive while one
    computes. The backbone's other layers are one group. Each attachment is one, in float32.

    Args:
        replicate_degree: copies of the sharded model; above 1 this is HSDP, and each set of
            consecutive ranks (a node, usually) holds one copy.
        reshard_after_forward: free a block's gathered weights after its forward pass and gather
            them again for the backward pass; False trades memory for less traffic.
        param_dtype: type of the gathered weights of the backbone; None: as stored. The shards,
            which the optimizer updates, stay float32.

    Raises:
        UserError: on ``BEFORE_LOAD``: no process group, or a degree that doesn't divide the ranks.
    """

    def __init__(
        self,
        *,
        replicate_degree: int = 1,
        reshard_after_forward: bool = True,
        param_dtype: torch.dtype | None = None,
    ) -> None:
        self.replicate_degree = replicate_degree
        self.reshard_after_forward = reshard_after_forward
        self.param_dtype = param_dtype

    def match(self, event: Event, state: State) -> bool:
        """After everything is attached and before anything is loaded."""
        del state
        return event == Event.BEFORE_LOAD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Shards the model in place and points the optimizer at the shards."""
        del event, logger
        mesh = _mesh(state.device._device.type, self.replicate_degree)
        policy = MixedPrecisionPolicy(param_dtype=self.param_dtype, reduce_dtype=torch.float32)
        if self.param_dtype is None:
            policy = MixedPrecisionPolicy()
        (optimizer,) = state.optimizers
        _start_alike(state.model)
        with sync_optimizer_and_model_params(optimizer, state.model):
            shard_generator(state.model, mesh, policy, self.reshard_after_forward)


def shard_generator(
    generator: nn.Module,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Shards a generator's backbone block by block, and each of its attachments, in place.

    The generator itself is not sharded: samplers also call its backbone directly, which must then
    gather its own weights.

    Args:
        generator: has a backbone ``dit`` and ``attachments``.
        mesh: one dimension to shard over, or two: replicate, shard.
        policy: types of the backbone's gathered weights and of its gradients' reduction.
        reshard_after_forward: see :class:`FullyShard`.
    """
    backbone, attachments = cast(Backbone, generator.dit), generator.attachments
    assert isinstance(attachments, nn.Module)
    policy = policy or MixedPrecisionPolicy()
    shard = partial(fully_shard, mesh=mesh, reshard_after_forward=reshard_after_forward)
    for block in backbone.blocks:
        shard(block, mp_policy=policy)
    # The root's own layers are needed at both ends of the pass: gathered once.
    shard(backbone, mp_policy=policy, reshard_after_forward=False)
    for attachment in attachments.children():
        shard(attachment)
    average_on_gloo(module for module in generator.modules() if isinstance(module, FSDPModule))


@torch.no_grad()
def _start_alike(model: nn.Module) -> None:
    """Gives every rank rank 0's weights and buffers, as DDP and DeepSpeed do.

    Composer seeds each rank differently, so modules attached at ``INIT`` differ between ranks, and
    shards of different models do not make one model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor, src=0)


def _mesh(device_type: str, replicate_degree: int) -> DeviceMesh:
    if not dist.is_initialized():
        raise UserError(
            "FullyShard needs a process group: call composer.utils.dist.initialize_dist first"
        )
    world = dist.get_world_size()
    if world % replicate_degree:
        near = min(
            (n for n in range(1, world + 1) if world % n == 0),
            key=lambda n: abs(n - replicate_degree),
        )
        raise UserError(
            f"replicate_degree {replicate_degree} does not divide the {world} ranks; "
            f"the nearest that does is {near}"
        )
    if replicate_degree == 1:
        return init_device_mesh(device_type, (world,), mesh_dim_names=(SHARD,))
    shape = (replicate_degree, world // replicate_degree)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE, SHARD))
