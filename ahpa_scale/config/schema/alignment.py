# SPDX-License-Identifier: Apache-2.0
"""The alignment section: AHPA, and its baselines as other values of `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from ahpa_scale.config.schema.fields import (
    AnyPath,
    List,
    Moment,
    Name,
    Section,
    Text,
    parse_moment,
)
from ahpa_scale.errors import UserError

Kind = Literal[
    "none", "ahpa", "uniform", "scheduled", "single", "latent", "velocity", "repa", "self"
]
#: The kinds that read groups of levels; `single` reads one of them.
LEVEL_KINDS = frozenset({"ahpa", "uniform", "scheduled", "single", "self"})
#: The kinds with a trained router.
ROUTED_KINDS = frozenset({"ahpa", "self"})
#: `until`, where the alignment's own residual says when.
MEASURED = "measured"


def _block(value: Any) -> int | dict[str, int]:
    blocks = list(value.values()) if isinstance(value, dict) else [value]
    if not blocks or any(isinstance(b, bool) or not isinstance(b, int) for b in blocks):
        raise UserError(
            f"{value!r} is neither a block's number nor a list of 'group: number'; write 3, or "
            "{coarse_layout: 5}"
        )
    if min(blocks) < 1:
        raise UserError(f"{min(blocks)} must be at least 1: blocks count from 1")
    return value


_Count = Annotated[int, Field(ge=1)]
# Errors of a union would name each of its branches; one validator names only the key.
Block = Annotated[
    int | dict[str, int],
    PlainValidator(_block, json_schema_input_type=_Count | dict[str, _Count]),
]
"""A block's number, or one for each of several groups."""


def _until(text: str) -> str:
    try:
        return text if text == MEASURED else parse_moment(text)
    except UserError as error:
        raise UserError(f"{error}; or write {MEASURED!r}") from None


Until = Annotated[str, AfterValidator(_until)]
"""A point of the run, or the point at which the alignment no longer makes progress."""


class Head(Section):
    """The projection from the backbone's tokens to one group's channels (training only)."""

    kind: Literal["mlp", "conv", "linear"] | None = Field(
        None,
        description="mlp: three linear layers; conv: one 3x3 convolution; linear: one layer; null: "
        "mlp, for velocity linear.",
    )
    width: int = Field(2048, ge=1, le=1_000_000, description="Hidden width; mlp only.")


class Router(Section):
    """The timestep-conditioned router of kind ahpa (training only)."""

    objective: Literal["standardised", "literal", "gap", "agreement"] = Field(
        "standardised",
        description="standardised: per-level losses in units of their own running deviation; "
        "literal: the alignment loss itself, which collapses onto the easiest level; gap: weights "
        "follow what can't be read from the tapped state; agreement: they follow how far the "
        "gradients agree (a negative control).",
    )
    gap_map: AnyPath | None = Field(
        None,
        description="A recoverability.json of `ahpa-scale diagnose` that objective gap follows; "
        "null: measured while training.",
    )
    gap_strength: bool = Field(
        False,
        description="Objective gap: align in proportion to the whole gap at each noise level, and "
        "not equally strongly at all of them.",
    )
    top_k: int | None = Field(None, ge=1, description="Groups kept at each t; null: all.")
    floor: float | None = Field(
        None, ge=0, lt=1, description="Least weight of each group; null: 0.05, literal 0."
    )
    prior_weight: float | None = Field(
        None,
        ge=0,
        description="Cost of the prior's divergence from the weights; null: 0.5, literal 0.",
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
        "single (one group or level); latent (SRA 2: the latent mean); velocity "
        "(deep supervision: the flow's own target); repa (cached external "
        "features); self (the moving average's own deeper blocks, routed).",
    )
    weight: float | None = Field(
        None, ge=0, description="Coefficient of the loss; null: 0.5, for latent 1.0."
    )
    gradient_ratio: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="In place of weight: norm of the alignment's gradient at the tap, as a share "
        "of the flow's, held by an automatic factor.",
    )
    start: Moment = Field("0ba", description="Alignment acts from here on.")
    until: Until | None = Field(
        None,
        description="Alignment acts until here; measured: until its residual no longer improves; "
        "null: to the end.",
    )
    ramp: Moment | None = Field(
        None,
        description="From until on the weight falls to 0 over this time; null: at once, if "
        "measured over 0.125dur.",
    )
    tap: Block | None = Field(
        None,
        description="Block whose output is aligned, 1-based, or one per group (group: block, the "
        "default for those not named); null: S and B 3, L 6, XL 7, tiny 2; latent: 2; repa: S and "
        "B 4, L and XL 8, tiny 2.",
    )
    levels: List[Text] | None = Field(
        None,
        description="Encoder levels by diffusers module path, fine to coarse, also 'latent', "
        "'velocity', 'external' and 'self.<block>'; null: all of the VAE's encoder.",
    )
    groups: dict[Name, List[Text]] | None = Field(
        None,
        description="Group name -> its levels, fine to coarse; null: local_geometry, "
        "spatial_topology and coarse_layout share `levels` evenly; one level alone keeps its name.",
    )
    level: Text | None = Field(
        None, description="The one target of kind single: the name of a group or of a level."
    )
    reverse: bool = Field(
        False, description="Kind scheduled: fine levels at high noise, the claim's falsification."
    )
    window: List[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Lowest and highest noise level that is aligned, as in [0.5, 0.95]; the mean "
        "strength stays. null: all.",
    )
    placebo: bool = Field(
        False,
        description="Targets of another picture: a scientific control that must not help.",
    )
    grid: dict[Name, _Count] | None = Field(
        None,
        description="Group name -> tokens per side that it is compared on, 1 being the mean; "
        "groups not named: the backbone's own grid.",
    )
    whiten: int | None = Field(
        None,
        ge=1,
        description="Dimensions that PCA whitens each level to, by the data set's statistics; "
        "null: levels as they are.",
    )
    token_weights: Literal["uniform", "residual"] = Field(
        "uniform", description="residual: tokens count by their distance from the target."
    )
    loss: Literal["cosine", "smooth_l1", "squared"] | None = Field(
        None,
        description="Distance to the target; null: cosine, for latent smooth_l1, for velocity "
        "squared.",
    )
    spatial_norm: float | None = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of the token mean removed from targets (iREPA); null: raw targets, "
        "which is the default of latent, velocity, repa and self, and with whiten.",
    )
    head: Head = Field(Head(), description="The projection head.")
    router: Router = Field(Router(), description="The router; kinds ahpa and self only.")
