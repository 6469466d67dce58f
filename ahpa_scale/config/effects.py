# SPDX-License-Identifier: Apache-2.0
"""No option is accepted and ignored: a key that has no effect beside the others must keep its
default.
"""

from __future__ import annotations

from collections.abc import Iterator

from ahpa_scale.config.errors import ConfigError
from ahpa_scale.config.explain import shown
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.alignment import LEVEL_KINDS
from ahpa_scale.config.schema.fields import Section


def check_effects(config: Config) -> None:
    """Refuse a key that was set and would do nothing.

    Raises:
        ConfigError: naming the key and what it would need.
    """
    idle = dict(_idle(config))
    for key, value, default in _leaves(config):
        # A rule names a key or a whole section.
        rule = next((name for name in idle if key == name or key.startswith(f"{name}.")), None)
        if rule is not None and value != default:
            raise ConfigError(
                config.source_of(key),
                key,
                f"{shown(value)} would have no effect: {idle[rule]}; remove it, or leave "
                f"{shown(default)}",
            )


def _idle(config: Config) -> Iterator[tuple[str, str]]:
    """Keys and sections without effect in this run, and why."""
    yield from _idle_alignment(config)
    if config.flow.timesteps != "logit_normal":
        why = "it belongs to flow.timesteps=logit_normal"
        yield from (("flow.logit_mean", why), ("flow.logit_std", why))
    if not config.ema.enabled:
        why = "ema.enabled is false"
        yield from (("ema.decay", why), ("ema.half_life", why))
    if config.checkpoint.save_folder is None:
        why = "without checkpoint.save_folder nothing is saved"
        yield from (("checkpoint.save_interval", why), ("checkpoint.keep", why))
    if not config.logging.wandb:
        yield "logging.wandb_project", "logging.wandb is false"
    if config.data.remote is None:
        why = "without data.remote nothing is downloaded"
        yield from (("data.predownload", why), ("data.cache_limit", why))


def _idle_alignment(config: Config) -> Iterator[tuple[str, str]]:
    alignment = config.alignment
    kind = alignment.kind
    if kind == "none":
        names = (name for name in type(alignment).model_fields if name != "kind")
        yield from ((f"alignment.{name}", "alignment.kind is none") for name in names)
        return
    if kind not in LEVEL_KINDS:
        why = f"alignment.kind {kind} has one fixed target"
        yield from (("alignment.levels", why), ("alignment.groups", why))
    for key, owner in (("level", "single"), ("reverse", "scheduled"), ("router", "ahpa")):
        if kind != owner:
            yield f"alignment.{key}", f"it belongs to alignment.kind={owner}"
    loss = alignment.loss or ("smooth_l1" if kind == "latent" else "cosine")
    if loss != "smooth_l1":
        yield "alignment.smooth_l1_beta", "it belongs to alignment.loss=smooth_l1"
    if alignment.head.kind != "mlp":
        yield "alignment.head.width", "it belongs to alignment.head.kind=mlp"


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted key, value and default of every key that is not a section and has a fixed default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not field.is_required() and field.default_factory is None:
            yield prefix + name, value, field.default
