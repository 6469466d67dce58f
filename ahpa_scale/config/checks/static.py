# SPDX-License-Identifier: Apache-2.0
"""Checks that the schema alone can't make: keys must fit one another, the machine, the VAE and the
data set.

`check_static` reads nothing but the configuration, the environment and a local VAE's config.json;
it runs as part of loading. `check_data` compares the configuration with a data set's card.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ahpa_scale.config.checks.data import check_data, read_data_card
from ahpa_scale.config.checks.effects import settle_effects
from ahpa_scale.config.checks.engine import check_engine, world_size
from ahpa_scale.config.checks.held_out import check_samples
from ahpa_scale.config.checks.levels import known_levels
from ahpa_scale.config.errors import choices, config_error
from ahpa_scale.config.fitted import fitted
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.config.schema.alignment import MEASURED
from ahpa_scale.config.targets import resolve_targets
from ahpa_scale.errors import UserError
from ahpa_scale.models.dit_config import DiTGeometry, resolve_geometry
from ahpa_scale.models.vae_config import DEMO_VAE, KNOWN_VAES, load_vae_config
from ahpa_scale.sampling.settings import SamplerSettings

if TYPE_CHECKING:
    from ahpa_scale.data.card import DatasetCard

__all__ = ["check_data", "check_static", "fit_to_data", "geometry", "read_data_card"]


def check_static(config: Config) -> None:
    """Check everything that needs neither the data nor a device.

    Raises:
        ConfigError: the first mistake found.
    """
    _check_model(config)
    _check_batch(config)
    check_engine(config, geometry(config).depth)
    _check_times(config)
    _check_run(config)
    _check_guard(config)
    check_sampling(config)
    check_samples(config)
    _check_alignment(config)
    _check_vae(config)
    _check_places(config)


def fit_to_data(config: Config, card: DatasetCard) -> Config:
    """Fill in the sizes that the card tells, see `fitted`, and check what depends on them.

    Raises:
        ConfigError: the first mistake found.
    """
    known = fitted(config, card)
    if known is not config:
        known = settle_effects(known)
        check_static(known)
    return known


def geometry(config: Config) -> DiTGeometry:
    """The backbone's depth, width and token grid.

    Raises:
        ConfigError: unknown name, or a patch that does not divide the input.
    """
    model = config.model
    try:
        return model.geometry()
    except UserError as error:
        # If the name alone is valid, the width or heads beside it is wrong.
        given = [name for name in ("width", "heads") if getattr(model, name) is not None]
        try:
            resolve_geometry(model.name, input_size=model.input_size)
            key = f"model.{given[0]}"
        except UserError:
            key = "model.name"
        raise config_error(config, key, str(error)) from None


def _check_model(config: Config) -> None:
    depth, tap = geometry(config).depth, config.alignment.tap or {}
    for group, block in (tap if isinstance(tap, dict) else {"": tap}).items():
        if block > depth:
            raise config_error(
                config,
                f"alignment.tap.{group}".rstrip("."),
                f"{block} lies behind the last of {depth} blocks of {config.model.name}",
            )


def _check_batch(config: Config) -> None:
    batch, micro = config.global_train_batch_size, config.device_train_microbatch_size
    world = world_size()
    if batch % world:
        near = max(1, round(batch / world)) * world
        raise config_error(
            config,
            "global_train_batch_size",
            f"{batch} can't be shared evenly by {world} processes; the nearest that can is {near}",
        )
    share = batch // world
    if isinstance(micro, int) and share % micro:
        near = min((n for n in range(1, share + 1) if share % n == 0), key=lambda n: abs(n - micro))
        raise config_error(
            config,
            "device_train_microbatch_size",
            f"{micro} does not divide the {share} samples of a process; the nearest that does "
            f"is {near}",
        )


def _check_times(config: Config) -> None:
    start, until = config.alignment.start, config.alignment.until
    if until is not None and until != MEASURED and not _before(config, start, until):
        raise config_error(
            config, "alignment.until", f"{until!r} must lie after alignment.start, {start!r}"
        )
    for key, moment in (("alignment.start", start), ("optimizer.warmup", config.optimizer.warmup)):
        if not _before(config, moment, config.max_duration):
            raise config_error(
                config,
                key,
                f"{moment!r} must lie before the end of the run, {config.max_duration!r}",
            )


def _before(config: Config, first: str, second: str) -> bool:
    """Whether one moment lies before another; True where epochs and samples can't be compared
    yet.
    """
    (first_value, first_unit), (second_value, second_unit) = (
        _moment(config, t) for t in (first, second)
    )
    return first_unit != second_unit or first_value < second_value


def _moment(config: Config, text: str) -> tuple[float, str]:
    """A moment in epochs or in samples."""
    value, unit = parse_time(text)
    if unit == "dur":
        total, unit = parse_time(config.max_duration)
        value *= total
    return (value * config.global_train_batch_size, "sp") if unit == "ba" else (value, unit)


def _check_places(config: Config) -> None:
    data = config.data
    if data.local is None and (data.streams is None or data.cached):
        what = "the cache of data.streams" if data.streams else "the data set's folder (or the "
        what += "" if data.streams else "cache of data.remote)"
        raise config_error(config, "data.local", f"name {what}")
    by_proportion = [stream.proportion is not None for stream in data.streams or ()]
    for place, stream in enumerate(data.streams or ()):
        key = f"data.streams[{place}]"
        if stream.proportion is not None and stream.repeat is not None:
            raise config_error(config, f"{key}.repeat", "name a proportion or a repeat, not both")
        if by_proportion[place] != by_proportion[0]:
            problem = "all sets have a proportion, or none has"
            raise config_error(config, f"{key}.proportion", problem)


def _check_run(config: Config) -> None:
    if config.precision == "amp_fp16" and config.device == "cpu":
        raise config_error(
            config, "precision", "'amp_fp16' needs a gpu; on the cpu use amp_bf16 or fp32"
        )
    port = config.logging.metrics_port
    if port is not None and str(port) == os.environ.get("MASTER_PORT"):
        problem = f"ranks meet at TCP port {port}, MASTER_PORT; name another one"
        raise config_error(config, "logging.metrics_port", problem)


def _check_guard(config: Config) -> None:
    guard, spikes, checkpoint = config.guard, config.guard.spikes, config.checkpoint
    for key, policy in (("nonfinite", guard.nonfinite), ("spikes.action", spikes.action)):
        if policy != "rollback":
            continue
        if checkpoint.save_folder is None:
            problem = "'rollback' needs a checkpoint to go back to: set checkpoint.save_folder"
        elif not checkpoint.autoresume:
            problem = "'rollback' ends in a restart of this command, which takes up the checkpoint "
            problem += "with checkpoint.autoresume=true only: set it"
        else:
            continue
        raise config_error(config, f"guard.{key}", problem)


def check_sampling(config: Config) -> None:
    """Check that the model can be sampled from as the section asks.

    Raises:
        ConfigError: settings that don't go together, guidance without classes, or a class that
            there isn't.
    """
    sampling, model = config.sampling, config.model
    try:
        settings = sampling.sampler()
    except UserError as error:
        key = "sampling" if sampling.preset is None else "sampling.preset"
        raise config_error(config, key, str(error)) from None
    if settings.adaptive:
        problem = f"{sampling.preset!r} chooses its steps by itself, and sample grids need equal "
        raise config_error(config, "sampling.preset", problem + "ones on all ranks: choose another")
    check_guidance(config, settings)
    most = model.num_classes
    outside = [label for label in sampling.classes or () if most and label >= most]
    if outside:
        raise config_error(
            config,
            "sampling.classes",
            f"there is no class {outside[0]}; the last of {most} is {(most or 0) - 1}",
        )


def check_guidance(config: Config, settings: SamplerSettings) -> None:
    """Check that the model can be guided as a sampler asks.

    Raises:
        ConfigError: there is no null class to guide by.
    """
    if not settings.guided or settings.guide is not None:
        return
    key = "sampling.guidance_scale"
    if config.model.unconditional:
        problem = "guidance needs classes, and model.num_classes is 1; set it to 1"
        raise config_error(config, key, problem)
    if config.model.label_dropout == 0:
        problem = "guidance needs a trained null class: set model.label_dropout above 0, or the "
        raise config_error(config, key, problem + "scale to 1")


def _check_alignment(config: Config) -> None:
    chosen = config.alignment
    if chosen.window is not None and not 0 <= chosen.window[0] < chosen.window[1] <= 1:
        problem = "must be two noise levels, 0 <= lowest < highest <= 1"
        raise config_error(config, "alignment.window", problem)


def _check_vae(config: Config) -> None:
    try:
        vae = load_vae_config(config.vae.path)
    except UserError as error:
        raise config_error(config, "vae.path", str(error)) from None
    if vae is None and "/" not in config.vae.path:
        hint = choices(config.vae.path, (DEMO_VAE, *KNOWN_VAES))
        problem = f"{config.vae.path!r} is neither a folder here nor a hub id; {hint}"
        raise config_error(config, "vae.path", problem)
    if vae is not None and config.model.in_channels not in (None, int(vae["latent_channels"])):
        raise config_error(
            config,
            "model.in_channels",
            f"{config.model.in_channels} does not fit the VAE {config.vae.path}, which has "
            f"{int(vae['latent_channels'])}",
        )
    # A hub id that this version does not know: check_data compares with the card as well.
    resolve_targets(config, None if vae is None else known_levels(vae))
