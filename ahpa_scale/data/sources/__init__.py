# SPDX-License-Identifier: Apache-2.0
"""Where pictures come from: one function opens a source of any kind, one module knows each kind."""

from __future__ import annotations

from ahpa_scale.data.pictures.crop import center_crop
from ahpa_scale.data.pictures.decode import DecodeOptions, open_image
from ahpa_scale.data.sources.base import (
    Collection,
    Picture,
    Source,
    SourceOptions,
    StoredSource,
)
from ahpa_scale.data.sources.demo import DemoSource, oracle_maps
from ahpa_scale.data.sources.door import open_source
from ahpa_scale.data.sources.folder import FolderSource

__all__ = [
    "Collection",
    "DecodeOptions",
    "DemoSource",
    "FolderSource",
    "Picture",
    "Source",
    "SourceOptions",
    "StoredSource",
    "center_crop",
    "open_image",
    "open_source",
    "oracle_maps",
]
