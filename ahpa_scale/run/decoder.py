# SPDX-License-Identifier: Apache-2.0
"""Finds the VAE that a model's latents belong to."""

from __future__ import annotations

from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.errors import UserError
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import DEMO_VAE, DEMO_VAE_FOLDER


def decoder_folder(told: ModelDescription, named: str | None = None) -> Path | None:
    """The local diffusers folder of a model's VAE; None if it is only known by its hub id.

    Args:
        told: the model.
        named: a folder or 'demo' that the user names instead.

    Raises:
        UserError: there is no VAE, or it is another one than the latents were made with.
    """
    place = named or told.vae
    folder = DEMO_VAE_FOLDER if place == DEMO_VAE else storage.local_path(place or ".")
    if not place or not folder.is_dir():
        if named is not None:
            raise UserError(f"there is no VAE folder at {named}")
        return None
    found = FrozenVAE.from_pretrained(place).identity
    if told.vae_identity and found != told.vae_identity:
        raise UserError(
            f"the VAE at {place} is {found}, and the model was trained on latents of "
            f"{told.vae_identity}: name that one with --vae"
        )
    return folder
