# SPDX-License-Identifier: Apache-2.0
"""The alignment section: AHPA, and its baselines as other values of `kind`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ahpa_scale.config.schema.fields import List, Moment, Name, Section, Text

Kind = Literal["none", "ahpa", "uniform", "scheduled", "single", "latent", "repa"]
#: The kinds that read groups of VAE levels; `single` reads one of them.
LEVEL_KINDS = frozenset({"ahpa", "uniform", "scheduled", "single"})


class Head(Section):
    """The projection from the backbone's tokens to one group's channels (training only)."""

    kind: Literal["mlp", "conv", "linear"] = Field(
        "mlp", description="mlp: three linear layers; conv: one 3x3 convolution; linear: one layer."
    )
    width: int = Field(2048, ge=1, le=1_000_000, description="Hidden width; mlp only.")


class Router(Section):
    """The timestep-conditioned router of kind ahpa (training only)."""

    objective: Literal["standardised", "literal"] = Field(
        "standardised",
        description="standardised: per-level losses in units of their own running deviation; "
        "literal: the alignment loss itself, which collapses onto the easiest level.",
    )
    hidden: int = Field(
        256, ge=2, le=1_000_000, multiple_of=2, description="Width of the hidden layers."
    )
    depth: int = Field(4, ge=2, le=100, description="Linear layers.")
    temperature: float = Field(
        1.0, gt=0, description="Divides the logits; above 1 flattens the weights."
    )
    top_k: int | None = Field(None, ge=1, description="Groups kept at each t; null: all.")
    floor: float | None = Field(
        None, ge=0, lt=1, description="Least weight of each group; null: 0.05, literal 0."
    )
    prior_weight: float | None = Field(
        None,
        ge=0,
        description="Cost of the divergence from the prior (the entropy term where the prior is "
        "uniform); null: 0.5, literal 0.",
    )
    snr_prior: float | None = Field(
        None,
        description="Strength of the prior 'coarse at high noise'; 0: uniform, negative: reversed; "
        "null: 1.0, literal 0.",
    )


class Alignment(Section):
    """Which targets a hidden state is pulled to, where, how strongly and how long."""

    kind: Kind = Field(
        "none",
        description="none; ahpa (routed groups); uniform or scheduled weights over the groups; "
        "single (one group or level); latent (SRA 2: the latent mean); repa (cached external "
        "features).",
    )
    weight: float | None = Field(
        None, ge=0, description="Coefficient of the loss; null: 0.5, for latent 1.0."
    )
    start: Moment = Field("0ba", description="Alignment acts from here on.")
    until: Moment | None = Field(None, description="Alignment acts until here; null: to the end.")
    tap: int | None = Field(
        None,
        ge=1,
        description="Block whose output is aligned, 1-based; null: S and B 3, L 6, XL 7, tiny 2; "
        "latent: 2; repa: S and B 4, L and XL 8, tiny 2.",
    )
    levels: List[Text] | None = Field(
        None,
        description="Encoder levels by diffusers module path, fine to coarse, also 'latent' "
        "and 'external'; null: all of the VAE's encoder.",
    )
    groups: dict[Name, List[Text]] | None = Field(
        None,
        description="Group name -> its levels, fine to coarse; null: local_geometry, "
        "spatial_topology and coarse_layout share `levels` evenly.",
    )
    level: Text | None = Field(
        None, description="The one target of kind single: the name of a group or of a level."
    )
    reverse: bool = Field(
        False, description="Kind scheduled: fine levels at high noise, the claim's falsification."
    )
    loss: Literal["cosine", "smooth_l1"] | None = Field(
        None, description="Distance to the target; null: cosine, for latent smooth_l1."
    )
    smooth_l1_beta: float = Field(
        0.05,
        gt=0,
        description="Where smooth L1 turns linear, in target units; loss smooth_l1 only.",
    )
    spatial_norm: float | None = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of the token mean removed from targets (iREPA); null: raw targets, "
        "which is the default of latent and repa.",
    )
    head: Head = Field(Head(), description="The projection head.")
    router: Router = Field(Router(), description="The router; kind ahpa only.")
    bins: int = Field(10, ge=1, le=1000, description="Bins of t for the running statistics.")
