# SPDX-License-Identifier: Apache-2.0
"""The ComposerModel: a batch of latents -> velocity -> flow loss, with one seam for auxiliary
losses.

Legend: B batch, C channels, H W latent height and width, N tokens, D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from ahpa_scale.errors import UserError
from ahpa_scale.level_names import PRIOR_PREFIX
from ahpa_scale.models.attachments import (
    refuse_other_attachments,
    released_loss,
    tapped_blocks,
)
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path, get_path, sample_timesteps, velocity_loss
from ahpa_scale.models.level_targets import encode_targets
from ahpa_scale.models.noising import noised
from ahpa_scale.models.prior_sources import LatentSource, PriorSource, SourceContext, fill_priors
from ahpa_scale.models.randomness import sample_key, uniform
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import float32_region

if TYPE_CHECKING:
    from ahpa_scale.method.level_codec import LevelCodec


class DiffusionGenerator(ComposerModel):
    """A diffusion transformer with its flow-matching objective.

    With nothing attached, forward and loss are the plain ones and the state dict holds ``dit.*``
    only. Every random number of a picture derives from (seed, epoch, sample index), so ranks,
    micro-batches and resuming don't change it.

    Args:
        backbone: predicts the velocity.
        scaling: how unscaled VAE latents become the backbone's input.
        path: ``linear`` or ``gvp`` (SiT, arXiv 2401.08740).
        timesteps: ``uniform`` or ``logit_normal`` (arXiv 2403.03206, section 3.1), with
            `logit_mean` and `logit_std`.
        label_dropout: share of labels replaced by the null class, for classifier-free guidance.
        seed: seed of noise, t, posterior samples and label dropout.
        vae: encodes batches that carry images instead of moments; never part of the state dict.
        codec: reduces the levels of pictures that are encoded here, as the data set's are; None
            averages them.
        cpu_bf16: run the forward pass under bfloat16 autocast on the CPU, where Composer's own
            precision setting refuses it; about four times as fast on CPUs with matrix units.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        scaling: LatentScaling,
        path: str = "linear",
        timesteps: str = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        label_dropout: float = 0.1,
        seed: int = 0,
        vae: FrozenVAE | None = None,
        codec: LevelCodec | None = None,
        cpu_bf16: bool = False,
    ) -> None:
        super().__init__()
        self.dit = backbone  # the name in every checkpoint
        self.attachments = nn.ModuleDict()
        self.path: Path = get_path(path)
        self.scaling = scaling
        self.label_dropout = label_dropout
        self.seed = seed
        self._timesteps = partial(sample_timesteps, kind=timesteps, mean=logit_mean, std=logit_std)
        self._cpu_bf16 = cpu_bf16
        self._taps: dict[str, tuple[int, ...]] = {}
        self._weights: dict[str, float] = {}
        self._unlogged: set[str] = set()
        self._sources: list[PriorSource] = [LatentSource()]
        # In a tuple, so that nn.Module doesn't adopt it: a frozen VAE belongs in no checkpoint,
        # optimizer or shard.
        self._vae = (vae,)
        self._codec = codec
        self.register_load_state_dict_pre_hook(refuse_other_attachments)

    @property
    def vae(self) -> FrozenVAE | None:
        """The frozen VAE for online encoding, or None."""
        return self._vae[0]

    def attach(
        self,
        name: str,
        auxiliary: nn.Module,
        taps: int | Sequence[int],
        weight: float = 1.0,
        *,
        logged: bool = True,
    ) -> None:
        """Attaches an auxiliary loss to the tokens after some blocks; call it before the
        optimizer's parameters are fixed.

        Args:
            name: key under ``attachments`` and of the logged loss.
            auxiliary: called as ``auxiliary(tapped, t_B, batch)`` inside the forward pass, where
                ``tapped`` maps each block of `taps` to its tokens ``[B, N, D]``, the very tensor
                that the next block reads; returns a scalar loss. Its attribute ``levels`` names
                the ``prior.<level>`` entries that it reads.
            taps: the block or blocks whose output it sees, 1-based.
            weight: its factor in the total loss.
            logged: Composer logs its loss, for which the host waits for the device in every batch;
                False leaves that to the caller.

        Raises:
            UserError: the name is taken or reserved, there is no tap, or one lies beyond the
                backbone's depth.
        """
        if name in self.attachments or name in ("total", "flow"):
            raise UserError(
                f"an auxiliary loss named {name!r} is already there; choose another name"
            )
        blocks = tapped_blocks(name, taps, self.dit.depth)
        device = next(self.dit.parameters()).device
        self.attachments[name] = auxiliary.to(device)
        self._taps[name] = blocks
        self._weights[name] = weight
        if not logged:
            self._unlogged.add(name)

    def detach(self, name: str) -> nn.Module:
        """Takes an auxiliary off again and returns it; without any, the generator is plain."""
        if name not in self.attachments:
            raise UserError(
                f"nothing named {name!r} is attached; "
                f"there is: {', '.join(self.attachments) or 'nothing'}"
            )
        del self._taps[name], self._weights[name]
        self._unlogged.discard(name)
        auxiliary: nn.Module = self.attachments.pop(name)
        return auxiliary

    def add_source(self, source: PriorSource) -> None:
        """Adds a source of missing ``prior.<level>`` maps; it is asked after the others."""
        self._sources.append(source)

    @property
    def sources(self) -> tuple[PriorSource, ...]:
        """The sources of prior maps, in the order in which they are asked."""
        return tuple(self._sources)

    def set_weight(self, name: str, weight: float) -> None:
        """Sets an auxiliary's factor; at 0 it is not run, but its parameters stay in the step."""
        self._weights[name] = weight

    def weight(self, name: str) -> float:
        """An auxiliary's present factor in the total loss."""
        return self._weights[name]

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone's parameters: what is trained for inference."""
        return self.dit.parameters()

    def attachment_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that exist in training only."""
        return self.attachments.parameters()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Noises the batch's latents and predicts their velocity.

        Args:
            batch: ``index``, ``epoch`` and ``label`` int64 ``[B]``, and either ``moments`` ``[B,
                2C, H, W]`` or ``image`` uint8 ``[B, 3, S, S]``; with auxiliaries also their
                ``prior.<level>`` maps, unless a source makes them.

        Returns:
            ``velocity`` and ``target`` ``[B, C, H, W]``, ``t`` ``[B]``, and ``auxiliary``: name ->
            scalar loss.
        """
        if self._cpu_bf16:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self._forward(batch)
        return self._forward(batch)

    def _forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        levels = self._wanted_levels()
        mean_BCHW, std_BCHW, inputs = self.encode(batch, levels)
        # float32 whatever the autocast: x_t mixes two terms of very different size near both ends
        # of the path.
        with float32_region(mean_BCHW):
            key = partial(self._key, batch)
            drawn = noised(mean_BCHW, std_BCHW, self.scaling, self.path, key, self._timesteps)
        condition_B = self._drop_labels(batch)
        t_B = drawn.t_B
        outputs = {"target": drawn.target_BCHW, "t": t_B, "auxiliary": {}}
        if not self.attachments:
            return {**outputs, "velocity": self.dit(drawn.xt_BCHW, t_B, condition_B)}
        taps = sorted({tap for blocks in self._taps.values() for tap in blocks})
        velocity_BCHW, tapped = self.dit(drawn.xt_BCHW, t_B, condition_B, taps=taps)
        clean_BCHW = self.scaling.normalise(mean_BCHW)
        context = SourceContext(batch, clean_BCHW, drawn, condition_B, self.path)
        fill_priors(inputs, levels, self._sources, context)
        auxiliary = {
            name: self._auxiliary_loss(name, {tap: tapped[tap] for tap in blocks}, t_B, inputs)
            for name, blocks in self._taps.items()
        }
        return {**outputs, "velocity": velocity_BCHW, "auxiliary": auxiliary}

    def encode(
        self, batch: Mapping[str, Tensor], levels: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The clean latents of a batch, from its moments or through the VAE.

        Args:
            batch: ``moments`` ``[B, 2C, H, W]``, or ``image`` uint8 ``[B, 3, S, S]``.
            levels: wanted levels; the VAE's among them come from the same pass over the pictures.

        Returns:
            Posterior mean and deviation, unscaled float32 ``[B, C, H, W]``, and the batch together
            with the ``prior.<level>`` maps that were made.
        """
        inputs = dict(batch)
        if "moments" in batch:
            mean_BCHW, std_BCHW = batch["moments"].float().chunk(2, dim=1)
            return mean_BCHW, std_BCHW, inputs
        assert self.vae is not None, "batches of images need a generator built with a VAE"
        known = {level.name for level in self.vae.levels}
        missing = [
            level for level in levels if level in known and PRIOR_PREFIX + level not in batch
        ]
        # In float32 as at preparation: in bfloat16 the encoder alone would move the alignment loss
        # by half a percent, and a run that encodes online would differ from one that reads its
        # cache.
        with float32_region(batch["image"]):
            encoded = encode_targets(self.vae, batch["image"], missing, self.dit.grid, self._codec)
        inputs.update({PRIOR_PREFIX + level: prior for level, prior in encoded.priors.items()})
        return encoded.mean_BCHW, encoded.std_BCHW, inputs

    def loss(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Tensor]:
        """Flow loss (SiT, arXiv 2401.08740, eq. 5) plus each auxiliary times its weight.

        Returns:
            ``total``, ``flow`` and the unweighted loss of each auxiliary that is logged, float32
            scalars; Composer logs them as ``loss/train/<key>``.
        """
        flow = velocity_loss(outputs["velocity"], outputs["target"]).mean()
        total = flow
        for name, loss in outputs["auxiliary"].items():
            total = total + self._weights[name] * loss
        logged = {k: v for k, v in outputs["auxiliary"].items() if k not in self._unlogged}
        return {"total": total, "flow": flow, **logged}

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        """The same forward pass: t and noise are keyed by sample, so held-out numbers are paired
        between models.
        """
        return self.forward(batch) if outputs is None else outputs

    def _key(self, batch: Mapping[str, Tensor], stream: str) -> Tensor:
        return sample_key(self.seed, batch["epoch"], batch["index"], stream)

    def _wanted_levels(self) -> list[str]:
        """Levels that auxiliaries with a weight other than 0 read, each once."""
        wanted: dict[str, None] = {}
        for name, auxiliary in self.attachments.items():
            if self._weights[name]:
                wanted.update(dict.fromkeys(getattr(auxiliary, "levels", ())))
        return list(wanted)

    def _drop_labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        label_B = batch["label"]
        if self.dit.num_classes == 1:
            label_B = torch.zeros_like(label_B)
        if not self.label_dropout:
            return label_B
        drop_B = uniform(self._key(batch, "label_dropout"))[:, 0] < self.label_dropout
        return torch.where(drop_B, self.dit.num_classes, label_B)

    def _auxiliary_loss(
        self, name: str, tapped: dict[int, Tensor], t_B: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        auxiliary = self.attachments[name]
        if self._weights[name]:
            loss: Tensor = auxiliary(tapped, t_B, inputs)
            return loss
        return released_loss(auxiliary, tapped[self._taps[name][0]])
