# SPDX-License-Identifier: Apache-2.0
"""Builds the objects for training from a checked configuration and its data set's card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback
from composer.devices import Device
from composer.utils import dist, reproducibility

from ahpa_scale.algorithms import EMA, Guard
from ahpa_scale.algorithms.guard import Spikes
from ahpa_scale.callbacks import (
    EngineLine,
    RouterFigure,
    RunSummary,
    SampleGrid,
)
from ahpa_scale.checkpoint.best import Contest
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.config.brought import Brought
from ahpa_scale.config.checks.data import check_vae_weights
from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.fitted import fitted
from ahpa_scale.config.schema import Config, parse_duration
from ahpa_scale.config.targets import Targets
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.codec_file import read_codec
from ahpa_scale.data.mix import MixCard
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError
from ahpa_scale.exporter import Board
from ahpa_scale.method.level_codec import LevelCodec
from ahpa_scale.models.dit import build_dit
from ahpa_scale.models.generator import DiffusionGenerator
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.preemption import Requests
from ahpa_scale.run.alignment import build_alignment
from ahpa_scale.run.checkpoints import build_saver, find_start
from ahpa_scale.run.device import chosen_device
from ahpa_scale.run.engine import (
    build_engine,
    compile_blocks,
    composer_precision,
    cpu_bf16,
)
from ahpa_scale.run.initial import take_initial_weights
from ahpa_scale.run.learning_rate import build_schedule
from ahpa_scale.run.loggers import build_loggers
from ahpa_scale.run.measurements import build_measurements


def build_trainer(
    config: Config,
    card: DatasetCard,
    targets: Targets,
    callbacks: Sequence[Callback] = (),
    *,
    alive: Callable[[], None] | None = None,
    requests: Requests | None = None,
    board: Board | None = None,
    held_out: Brought | None = None,
) -> Trainer:
    """Builds the Trainer of one run.

    Args:
        config: a configuration that passed its checks.
        card: card of the data set named in the configuration.
        targets: what the alignment aligns with, from `check_data`.
        callbacks: further callbacks, run after those from the configuration.
        alive: called while the run waits for an upload.
        requests: requests from outside, for example to save or leave.
        board: holds the run's numbers that are served.
        held_out: the held-out set, from `check_held_out`; None if the run looks at none.

    Raises:
        HostError: the requested device isn't there.
        ConfigError: the VAE's weights are not those that made the data, or a checkpoint can't be
            loaded.
    """
    config = fitted(config, card)
    device = chosen_device(config)
    dist.initialize_dist(device)
    start = find_start(config, card)
    # All ranks draw the same initial weights. What differs between ranks derives from samples.
    reproducibility.seed_all(config.seed)
    vae = _load_vae(config, card)
    codec = None
    if vae is not None:
        vae.to(device._device)
        codec = load_codec(config, card, targets)
        codec = None if codec is None else codec.to(device._device)
    generator = build_generator(config, card, vae, codec, cpu_bf16=cpu_bf16(config, device))
    if config.model.weights is not None and start.source is None:
        take_initial_weights(config, card, generator.dit)
    if config.parallelism.compile:
        compile_blocks(config, generator, device)
    contest = Contest()
    tracker_ids = {"wandb": start.tracker_id("wandb")} if config.logging.wandb else {}
    try:
        return Trainer(
            model=generator,
            train_dataloader=_build_loader(config, card, targets),
            optimizers=_build_optimizer(config, generator),
            schedulers=build_schedule(config),
            max_duration=config.max_duration,
            algorithms=build_algorithms(config, card, targets, device, requests),
            callbacks=[
                *start.callbacks(),
                *build_saver(config, start, tracker_ids, alive, requests, card, contest),
                *build_measurements(config, vae, device, held_out, contest, requests),
                *_build_callbacks(config, card, generator, vae, requests),
                *callbacks,
            ],
            loggers=build_loggers(config, start, tracker_ids, generator.dit, board),
            device=device,
            precision=composer_precision(config, device),
            device_train_microbatch_size=config.device_train_microbatch_size,
            seed=config.seed,
            run_name=config.run_name,
            progress_bar=False,
            auto_log_hparams=False,
        )
    except CheckpointError as error:
        assert start.source is not None
        key = "checkpoint.save_folder" if start.same_run else "checkpoint.load_path"
        problem = f"{start.source.url}: {error}"
        raise ConfigError(config.source_of(key), key, problem) from None


def build_generator(
    config: Config,
    card: DatasetCard,
    vae: FrozenVAE | None = None,
    codec: LevelCodec | None = None,
    *,
    cpu_bf16: bool = False,
) -> DiffusionGenerator:
    """Builds the model. Without a VAE it takes only cached latents. The codec is for levels of
    pictures that it encodes.
    """
    model, flow = fitted(config, card).model, config.flow
    input_size, in_channels, num_classes = model.sizes()
    label_dropout = 0.0 if model.unconditional else model.label_dropout
    dit = build_dit(
        model.name,
        input_size=input_size,
        in_channels=in_channels,
        num_classes=num_classes,
        qk_norm=model.qk_norm,
        class_dropout_prob=label_dropout,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
    )
    dit.checkpoint_every = config.parallelism.activation_checkpointing
    return DiffusionGenerator(
        dit,
        scaling=card.scaling,
        path=flow.path,
        timesteps=flow.timesteps,
        logit_mean=flow.logit_mean,
        logit_std=flow.logit_std,
        label_dropout=label_dropout,
        seed=config.seed,
        vae=vae,
        codec=codec,
        cpu_bf16=cpu_bf16,
    )


def build_algorithms(
    config: Config,
    card: DatasetCard,
    targets: Targets,
    device: Device,
    requests: Requests | None = None,
) -> list[Algorithm]:
    """Builds the plug-ins: alignment, guard, engine with gradient clipping, EMA."""
    algorithms: list[Algorithm] = []
    if targets.groups:
        algorithms.append(build_alignment(config, card, targets))
    # Before GradClip: Composer runs algorithms in reverse order after the backward passes.
    algorithms.append(build_guard(config, requests))
    algorithms.extend(build_engine(config, device))
    decay = config.ema.decay
    if isinstance(decay, str):
        algorithms.append(EMA(half_life=decay))
    elif decay is not None:
        algorithms.append(EMA(decay=decay))
    return algorithms


def build_guard(config: Config, requests: Requests | None = None) -> Guard:
    """Builds the guard against bad batches, loss spikes and running out of job time."""
    chosen, action = config.guard, config.guard.spikes.action
    rule = None if action == "none" else Spikes(action)
    limit = None if chosen.time_limit is None else parse_duration(chosen.time_limit)
    return Guard(
        config.output_dir,
        nonfinite=chosen.nonfinite,
        spikes=rule,
        save_folder=config.checkpoint.save_folder,
        time_limit=limit,
        requests=requests,
    )


def _load_vae(config: Config, card: DatasetCard) -> FrozenVAE | None:
    """The VAE if the run encodes online or decodes samples, else None."""
    draws = config.sampling.interval is not None or config.evaluation.samples is not None
    if not (config.data.online or draws):
        return None
    try:
        vae = FrozenVAE.from_pretrained(config.vae.path)
    except UserError as error:
        raise ConfigError(config.source_of("vae.path"), "vae.path", str(error)) from None
    check_vae_weights(config, card, vae.identity)
    return vae


def load_codec(config: Config, card: DatasetCard, targets: Targets) -> LevelCodec | None:
    """The data set's codec if the run encodes levels online, else None."""
    if card.kind != "images" or not targets.stored:
        return None
    try:
        return read_codec(config.data.places[0], card)
    except UserError as error:
        key = config.data.key
        raise ConfigError(config.source_of(key), key, str(error)) from None


def _build_loader(config: Config, card: DatasetCard, targets: Targets) -> Any:
    data = config.data
    return build_loader(
        card if isinstance(card, MixCard) else data.places[0],
        local=data.local if data.cached else None,
        batch_size=config.global_train_batch_size // dist.get_world_size(),
        levels=() if data.online else targets.stored,
        seed=config.seed,
        num_workers=data.num_workers,
        num_canonical_nodes=data.num_canonical_nodes,
        cache_limit=data.cache_limit,
    )


def _build_optimizer(config: Config, generator: DiffusionGenerator) -> torch.optim.AdamW:
    chosen = config.optimizer
    return torch.optim.AdamW(
        [p for p in generator.backbone_parameters() if p.requires_grad],
        lr=chosen.lr,
        betas=chosen.betas,
        weight_decay=chosen.weight_decay,
        fused=True,
    )


def _build_callbacks(
    config: Config,
    card: DatasetCard,
    generator: DiffusionGenerator,
    vae: FrozenVAE | None,
    requests: Requests | None,
) -> list[Callback]:
    sampling = config.sampling
    callbacks: list[Callback] = []
    if sampling.interval is not None:
        assert vae is not None
        callbacks.append(
            SampleGrid(
                config.output_dir,
                sampling.interval,
                decoder=vae,
                scaling=card.scaling,
                path=generator.path,
                class_names=("",) if config.model.unconditional else card.classes,
                classes=sampling.classes,
                settings=sampling.sampler(),
                requests=requests,
            )
        )
    callbacks.append(EngineLine(config.parallelism.engine))
    interval = config.logging.router_interval
    callbacks.append(RouterFigure(config.output_dir, interval, requests))
    saved = config.checkpoint.save_folder
    callbacks.append(RunSummary(config.output_dir, saved, requests=requests))
    return callbacks
