# SPDX-License-Identifier: Apache-2.0
"""Names of the levels that an alignment compares with, and of a batch's columns that hold them.

A level is named by the path of a module of the VAE's encoder, ``latent``, ``external`` (features
that came with the data) or ``self.<k>`` (tokens after block k, from 1, of the model's own moving
average). Standard library only.
"""

from __future__ import annotations

LATENT = "latent"
EXTERNAL = "external"
#: A level's column in a batch and in a data set.
PRIOR_PREFIX = "prior."
_SELF_PREFIX = "self."


def self_level(block: int) -> str:
    """The name of the level after a block, counted from 1."""
    return f"{_SELF_PREFIX}{block}"


def is_self_level(name: str) -> bool:
    """Whether a level's name has the form of a self level. The block need not exist."""
    return name.startswith(_SELF_PREFIX)


def self_block(name: str) -> int | None:
    """The block, from 1, that ``self.<k>`` names; None for any other level."""
    number = name.removeprefix(_SELF_PREFIX)
    named = is_self_level(name) and number.isascii() and number.isdecimal()
    return int(number) if named else None
