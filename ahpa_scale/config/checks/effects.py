# SPDX-License-Identifier: Apache-2.0
"""Refuses a key that would have no effect beside the others: no option is accepted and ignored.

There is one exception: a switch on the command line, such as ``alignment.kind=none``, makes keys of
the file idle. These go back to their defaults. So a baseline needs only one override, and the saved
configuration says what was really used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ahpa_scale.algorithms.ahpa import KINDS
from ahpa_scale.config.checks.engine import idle_keys
from ahpa_scale.config.errors import COMMAND_LINE, ConfigError
from ahpa_scale.config.explain import shown
from ahpa_scale.config.schema import Alignment, Config
from ahpa_scale.config.schema.alignment import LEVEL_KINDS
from ahpa_scale.config.schema.fields import Section

SectionT = TypeVar("SectionT", bound=Section)

#: Keys of the alignment section that belong to some kinds only.
OWNERS = {
    "level": ("single",),
    "reverse": ("scheduled",),
    "router": ("ahpa", "self"),
}


#: Defaults of keys that are null today. Runs of then have written them down, and they mean nothing
#: where nothing is drawn, or aligned.
_EARLIER = {
    "alignment.head.kind": "mlp",
    "sampling.steps": 50,
    "sampling.method": "euler",
    "sampling.guidance_scale": 1.0,
}


_OF_SAMPLES = ("reference", "features")


@dataclass(frozen=True)
class Idle:
    """A key, or a whole section, without effect in a run.

    Attributes:
        key: dotted key.
        switch: the key that makes it idle.
        why: the reason in words.
    """

    key: str
    switch: str
    why: str

    def covers(self, key: str) -> bool:
        """Whether `key` is the idle key or lies in the idle section."""
        return key == self.key or key.startswith(f"{self.key}.")


def settle_effects(config: Config) -> Config:
    """Refuse keys that would do nothing; reset keys of the file that the command line made idle.

    Raises:
        ConfigError: it names the key and why it would do nothing.
    """
    rules = list(_idle(config))
    for key, value, default in _leaves(config):
        rule = next((rule for rule in rules if rule.covers(key)), None)
        if rule is None or value in (default, _EARLIER.get(key, default)):
            continue
        switched = config.source_of(rule.switch) == COMMAND_LINE
        if not switched or config.source_of(key) == COMMAND_LINE:
            raise ConfigError(
                config.source_of(key),
                key,
                f"{shown(value)} would have no effect: {rule.why}; remove it, or leave "
                f"{shown(default)}",
            )
        config = _replaced(config, key.split("."), default)
    return config


def _replaced(section: SectionT, path: Sequence[str], value: object) -> SectionT:
    """A copy of `section` with the key at `path` set."""
    name, *rest = path
    inner = _replaced(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def _idle(config: Config) -> Iterator[Idle]:
    """Keys and sections without effect in this run, and why."""
    yield from _idle_alignment(config)
    if config.model.unconditional:
        why = "model.num_classes is 1, and there is no label to drop"
        yield Idle("model.label_dropout", "model.num_classes", why)
    if config.flow.timesteps != "logit_normal":
        why = "it belongs to flow.timesteps=logit_normal"
        yield from (Idle(f"flow.{n}", "flow.timesteps", why) for n in ("logit_mean", "logit_std"))
    if config.checkpoint.save_folder is None:
        why = "without checkpoint.save_folder nothing is saved"
        saving = ("save_interval", "keep", "keep_every", "autoresume")
        yield from (Idle(f"checkpoint.{n}", "checkpoint.save_folder", why) for n in saving)
    elif config.checkpoint.keep is None:
        yield Idle("checkpoint.keep_every", "checkpoint.keep", "checkpoint.keep=null keeps all")
    if not config.checkpoint.autoresume and config.checkpoint.load_path is None:
        why = "neither checkpoint.autoresume nor checkpoint.load_path takes a checkpoint up"
        yield Idle("checkpoint.accept_other_data", "checkpoint.autoresume", why)
    if config.checkpoint.load_path is not None:
        why = "checkpoint.load_path brings the weights"
        yield Idle("model.weights", "checkpoint.load_path", why)
    yield from (Idle(*rule) for rule in idle_keys(config))
    if not config.watch.enabled:
        names, why = ["silence", "port"], "watch.enabled is false"
        if config.logging.metrics_port is None:
            names.append("hang")  # /healthz uses it
        yield from (Idle(f"watch.{name}", "watch.enabled", why) for name in names)
    if config.optimizer.schedule == "constant":
        why = "optimizer.schedule is constant"
        yield Idle("optimizer.final", "optimizer.schedule", why)
    if config.optimizer.schedule != "wsd":
        why = "it belongs to optimizer.schedule=wsd"
        yield Idle("optimizer.decay", "optimizer.schedule", why)
    yield from _idle_places(config)
    yield from _idle_measurements(config)
    drawn = config.sampling.interval is not None or config.evaluation.samples is not None
    if config.sampling.interval is None:
        yield Idle("sampling.classes", "sampling.interval", "sampling.interval is null")
    if not drawn:
        why = "sampling.interval and evaluation.samples are null"
        fields = [name for name in type(config.sampling).model_fields if name != "interval"]
        yield from (Idle(f"sampling.{name}", "sampling.interval", why) for name in fields)
    elif config.sampling.guidance_scale == 1:
        why = "sampling.guidance_scale is 1"
        yield Idle("sampling.guidance_interval", "sampling.guidance_scale", why)


def _idle_measurements(config: Config) -> Iterator[Idle]:
    chosen = config.evaluation
    if chosen.data is None:
        yield Idle("evaluation.pictures", "evaluation.data", "evaluation.data is null")
    if chosen.samples is None:
        why = "evaluation.samples is null"
        yield from (Idle(f"evaluation.{n}", "evaluation.samples", why) for n in _OF_SAMPLES)
    if chosen.data is None and chosen.samples is None:
        why = "evaluation.data and evaluation.samples are null"
        yield Idle("evaluation.interval", "evaluation.data", why)


def _idle_places(config: Config) -> Iterator[Idle]:
    data = config.data
    if data.streams is not None:
        yield Idle("data.remote", "data.streams", "data.streams names the data sets")
        if not data.cached:
            why = "data.streams has folders only, which are read in place"
            yield from (Idle(f"data.{n}", "data.streams", why) for n in ("local", "cache_limit"))
    elif data.remote is None:
        why = "without data.remote nothing is downloaded"
        yield Idle("data.cache_limit", "data.remote", why)


def _idle_alignment(config: Config) -> Iterator[Idle]:
    alignment = config.alignment
    kind = alignment.kind
    if kind == "none":
        names = (name for name in type(alignment).model_fields if name != "kind")
        why = "alignment.kind is none"
        yield from (Idle(f"alignment.{name}", "alignment.kind", why) for name in names)
        return
    if kind not in LEVEL_KINDS:
        why = f"alignment.kind {kind} has one fixed target"
        yield from (Idle(f"alignment.{n}", "alignment.kind", why) for n in ("levels", "groups"))
    for key, owners in OWNERS.items():
        if kind not in owners:
            why = f"it belongs to alignment.kind={' or '.join(owners)}"
            yield Idle(f"alignment.{key}", "alignment.kind", why)
    if (alignment.head.kind or KINDS[kind].head) != "mlp":
        why = "it belongs to alignment.head.kind=mlp"
        yield Idle("alignment.head.width", "alignment.head.kind", why)
    yield from _idle_remedies(alignment)


def _idle_remedies(alignment: Alignment) -> Iterator[Idle]:
    if alignment.gradient_ratio is not None:
        why = "the strength follows from alignment.gradient_ratio"
        yield Idle("alignment.weight", "alignment.gradient_ratio", why)
    if alignment.until is None:
        yield Idle("alignment.ramp", "alignment.until", "alignment.until is null")
    if alignment.router.objective != "gap":
        why = "it belongs to alignment.router.objective=gap"
        switch = "alignment.router.objective"
        names = ("gap_map", "gap_strength")
        yield from (Idle(f"alignment.router.{name}", switch, why) for name in names)


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted key, value and default of every key that is not a section and has a fixed default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not field.is_required() and field.default_factory is None:
            yield prefix + name, value, field.default
