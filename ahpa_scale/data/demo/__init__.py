# SPDX-License-Identifier: Apache-2.0
"""Demo pictures: unlimited, class-labelled, with known coarse, middle and fine structure."""

from __future__ import annotations

from ahpa_scale.data.demo.render import DemoPicture, render
from ahpa_scale.data.demo.spec import PRESETS, DemoSpec, class_names

__all__ = ["PRESETS", "DemoPicture", "DemoSpec", "class_names", "render"]
