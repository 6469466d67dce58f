# SPDX-License-Identifier: Apache-2.0
"""Samples latents with a velocity model, and lays pictures out in a labelled grid."""

from __future__ import annotations

from ahpa_scale.sampling.grid import PER_CLASS, class_rows, image_grid, save_image
from ahpa_scale.sampling.sampler import sample

__all__ = ["PER_CLASS", "class_rows", "image_grid", "sample", "save_image"]
