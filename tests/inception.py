# SPDX-License-Identifier: Apache-2.0
"""Inception's weights file with random numbers, for tests without a download."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn


def save_random_inception(path: Path) -> None:
    """Writes safetensors of what torch-fidelity takes as its network's weights, 96 MB."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    # It can't be made without weights.
    network = library.FeatureExtractorInceptionV3
    with (
        mock.patch.object(library, "load_state_dict_from_url", return_value={}),
        mock.patch.object(network, "load_state_dict"),
    ):
        torch.manual_seed(0)
        made = network("inception-v3-compat", ["2048"])
    for module in made.modules():
        if isinstance(module, nn.Conv2d):  # torch's own would let the signal fade away
            nn.init.kaiming_normal_(module.weight)
    save_file(made.state_dict(), path)
