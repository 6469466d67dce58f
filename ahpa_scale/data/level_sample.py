# SPDX-License-Identifier: Apache-2.0
"""Tokens of a few pictures, that a codec is fitted to and measured on.

Legend: B batch, C channels, H W map sides, P positions of a token, n tokens of a picture, N sampled
tokens, Z channels of a latent patch, S picture side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.pictures.rejects import Rejects
from ahpa_scale.data.reading import batches
from ahpa_scale.data.settings import PrepareSettings
from ahpa_scale.data.sources import Source
from ahpa_scale.data.sources.some import SomeOf
from ahpa_scale.method.folding import folded_tokens
from ahpa_scale.method.priors import patchify
from ahpa_scale.models.vae import FrozenVAE

#: Tokens of all pictures together. The SD VAE's levels take 250 kB a token.
_TOKENS = 4096
#: Share of the pictures that the codec is fitted to; it is measured on the others.
_FITTED = 0.75


@dataclass(frozen=True)
class LevelSample:
    """The same tokens of all levels and of the latent, picture by picture; float32 on the CPU.

    Attributes:
        levels: level, fine to coarse -> ``[N, C, P]``.
        latent_NZ: unscaled posterior means, in the patches that the backbone reads.
        pictures: number of pictures.
        fitted: number of leading tokens that the codec is fitted to; the others are of other
            pictures.
    """

    levels: dict[str, Tensor]
    latent_NZ: Tensor
    pictures: int
    fitted: int


def sampled_positions(total: int, count: int) -> list[int]:
    """`count` positions of a source of `total` pictures, chosen by their hash; all if there are
    fewer. Whoever sees the same list of files chooses the same pictures.
    """
    if total <= count:
        return list(range(total))

    def key(position: int) -> bytes:
        return hashlib.blake2b(str(position).encode(), digest_size=8).digest()

    return sorted(sorted(range(total), key=key)[:count])


def take_sample(
    settings: PrepareSettings, card: DatasetCard, vae: FrozenVAE, pictures: Source
) -> LevelSample:
    """Encodes the sample.

    Args:
        settings: settings of the preparation.
        card: its planned card.
        vae: the frozen autoencoder, on the settings' device.
        pictures: all pictures of the data set.

    Raises:
        UserError: none of the sampled pictures can be read.
    """
    sample = SomeOf(pictures, sampled_positions(len(pictures), settings.sample))
    count = min(card.grid**2, -(-_TOKENS // len(sample)))
    generator = torch.Generator().manual_seed(0)
    tokens: dict[str, list[Tensor]] = {name: [] for name in card.level_names}
    latents: list[Tensor] = []
    # The pass over all pictures decides whether too many are unreadable. Here one will do.
    rejects = Rejects(len(sample), 1.0)
    every = [(0, range(len(sample)))]
    for batch in batches(sample, every, batch_size=settings.batch_size, workers=settings.workers):
        rejects.add_all({each.name: each.reason for each in batch.rejects})
        if not batch.pictures:
            continue
        token_N = torch.randperm(card.grid**2, generator=generator)[:count]
        images_BHWC = torch.from_numpy(np.stack([picture.image_HWC for picture in batch.pictures]))
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).to(settings.device)

        def fold(level: str, map_BCHW: Tensor, token_N: Tensor = token_N) -> Tensor:
            return folded_tokens(map_BCHW, card.grid, token_N).cpu()

        encoded = vae.encode(images_BCHW, levels=card.level_names, reduce=fold)
        for name, token_BnCP in encoded.priors.items():
            tokens[name].append(token_BnCP)
        latents.append(patchify(encoded.mean_BCHW, card.grid)[:, token_N.to(settings.device)].cpu())
    read = len(sample) - len(rejects)
    return LevelSample(
        levels={name: torch.cat(parts).flatten(0, 1) for name, parts in tokens.items()},
        latent_NZ=torch.cat(latents).flatten(0, 1),
        pictures=read,
        fitted=max(1, int(_FITTED * read)) * count,
    )
