# SPDX-License-Identifier: Apache-2.0
"""Sizes of the model that the data decide, where a run leaves them open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ahpa_scale.config.schema import Config

if TYPE_CHECKING:
    from ahpa_scale.data.card import DatasetCard


def fitted(config: Config, card: DatasetCard) -> Config:
    """The configuration with `model.input_size`, `model.in_channels` and `model.num_classes` of the
    data set in place of nulls, so that the saved one holds the numbers.
    """
    channels, side, _ = card.latent_shape
    told = {"input_size": side, "in_channels": channels, "num_classes": card.num_classes}
    open_ = {name: value for name, value in told.items() if getattr(config.model, name) is None}
    if not open_:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update=open_)})
