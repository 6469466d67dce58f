# SPDX-License-Identifier: Apache-2.0
"""Keys that earlier versions had. Most have one fixed value since: nobody needed another one. The
others, and some values, are written otherwise today. What earlier versions saved can still be read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ahpa_scale import console
from ahpa_scale.config.defaults import RAMP
from ahpa_scale.config.errors import COMMAND_LINE, ConfigError, speaks_for_all_ranks
from ahpa_scale.config.explain import shown
from ahpa_scale.config.schema import Config
from ahpa_scale.config.schema.alignment import MEASURED
from ahpa_scale.config.schema.run import source_of
from ahpa_scale.config.schema.training import EMA_DECAY, WANDB_CHOOSES
from ahpa_scale.errors import UserError

REMOVED: dict[str, Any] = {
    "alignment.bins": 10,
    "alignment.release.fast": 0.999,
    "alignment.release.improvement": 0.02,
    "alignment.release.slow": 0.99995,
    "alignment.router.ceiling": "anywhere",
    "alignment.router.depth": 4,
    "alignment.router.hidden": 256,
    "alignment.router.temperature": 1.0,
    "alignment.self_lead": 0.1,
    "alignment.sharpness": 3.0,
    "alignment.smooth_l1_beta": 0.05,
    "data.predownload": None,
    "data.shuffle": True,
    "guard.patience": 10,
    "guard.rollbacks": 1,
    "guard.spikes.patience": 3,
    "guard.spikes.threshold": 8.0,
    "guard.spikes.window": 100,
    "logging.progress_bar": True,
    "optimizer.eps": 1e-8,
    "parallelism.bucket_size": 50_000_000,
    "sampling.num_per_class": 4,
}
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Respelt:
    """What a section wrote otherwise.

    Attributes:
        section: which one.
        today: from the section as it was, its keys as they are written today; none if they are.
            It raises UserError for what can't be written any more.
        gone: keys that it has no more, with the value that asked for nothing.
    """

    section: str
    today: Callable[[Mapping[str, Any]], dict[str, Any]]
    gone: Mapping[str, Any] = field(default_factory=dict)


def _until(was: Mapping[str, Any]) -> dict[str, Any]:
    release = was.get("release")
    if release is None:
        return {}
    if was.get("until") not in (None, MEASURED):
        raise UserError(f"alignment ends at a time or {MEASURED}, and both were asked for")
    ramp = release.get("ramp", RAMP) if isinstance(release, dict) else RAMP
    return {"until": MEASURED, "ramp": ramp}


def _keep(was: Mapping[str, Any]) -> dict[str, Any]:
    return {"keep": None} if was.get("keep") == -1 else {}


def _decay(was: Mapping[str, Any]) -> dict[str, Any]:
    if not {"enabled", "half_life"} & was.keys():
        return {}
    if was.get("enabled") is False:
        return {"decay": None}
    given = (was.get(name) for name in ("half_life", "decay"))
    return {"decay": next((value for value in given if value is not None), EMA_DECAY)}


def _wandb(was: Mapping[str, Any]) -> dict[str, Any]:
    on, project = was.get("wandb", False), was.get("wandb_project")
    if not isinstance(on, bool) and project is None:
        return {}
    return {"wandb": project or (WANDB_CHOOSES if on else None)}


RESPELT = (
    Respelt("alignment", _until, {"release": None}),
    Respelt("checkpoint", _keep),
    Respelt("ema", _decay, {"enabled": True, "half_life": None}),
    Respelt("logging", _wandb, {"wandb_project": None}),
)


def drop_removed(
    content: Any, sources: Mapping[str, str], written: dict[Place, str], *, elsewhere: bool
) -> None:
    """Takes removed keys out of a configuration and respells others, in place.

    Args:
        content: resolved, not yet validated.
        sources: where each key was written.
        written: values with interpolations, as written, by their place; a removed key's goes too.
        elsewhere: the run is another process's and is only inspected: a value other than the fixed
            one gives a warning and is left out.

    Raises:
        ConfigError: this run asks for such a value, or for a key that is written otherwise today.
    """
    for key, always in REMOVED.items():
        section, name = _section_of(content, key)
        if section is None or name not in section:
            continue
        asked = section.pop(name)
        _forget(written, key)
        if asked != always:
            problem = f"it is always {shown(always)}, and {shown(asked)} was asked for"
            _complain(key, problem, sources, elsewhere=elsewhere)
    # All sections stand only in what a run has saved.
    saved = elsewhere or (
        isinstance(content, dict) and Config.model_fields.keys() <= content.keys()
    )
    for rule in RESPELT:
        section, _ = _section_of(content, f"{rule.section}.")
        if section is not None:
            _respell(rule, section, sources, written, saved=saved, elsewhere=elsewhere)


def with_removed(told: dict[str, Any]) -> dict[str, Any]:
    """Adds the keys that earlier versions wrote to a dumped configuration of a run that keeps an
    average and whose alignment is not released by measurement.
    """
    fixed = dict(REMOVED)
    for rule in RESPELT:
        fixed |= {f"{rule.section}.{name}": idle for name, idle in rule.gone.items()}
    for key, always in fixed.items():
        section, name = _section_of(told, key)
        if section is not None:
            section.setdefault(name, always)
    return told


def _respell(
    rule: Respelt,
    section: dict[str, Any],
    sources: Mapping[str, str],
    written: dict[Place, str],
    *,
    saved: bool,
    elsewhere: bool,
) -> None:
    gone = {name: section[name] for name in rule.gone if name in section}
    asked = [f"{rule.section}.{name}" for name in gone if gone[name] != rule.gone[name]]
    today: dict[str, Any] = {}
    try:
        today = rule.today(section)
    except UserError as error:
        _complain(asked[0], str(error), sources, elsewhere=elsewhere)
    for key in asked if today else ():
        if not saved or _asked_at(sources, key) == COMMAND_LINE:
            words = (f"{rule.section}.{name}={_plain(value)}" for name, value in today.items())
            _complain(key, f"write {' '.join(words)}", sources, elsewhere=False)
    for name in gone:
        del section[name]
    if any(sources.get(f"{rule.section}.{name}") == COMMAND_LINE for name in today):
        # It is of today, and stands above what was saved.
        today = rule.today(section)
    section.update(today)
    for name in gone:
        for place, text in _forget(written, f"{rule.section}.{name}").items():
            value: Any = gone
            for part in place[1:]:
                value = value[part]
            written |= {(rule.section, new): text for new in today if today[new] == value}


def _complain(key: str, problem: str, sources: Mapping[str, str], *, elsewhere: bool) -> None:
    problem = f"is no key any more: {problem}"
    if not elsewhere:
        raise ConfigError(_asked_at(sources, key), key, problem)
    if speaks_for_all_ranks():
        console.say(f"{key} {problem}; it is left out", level=logging.WARNING)


def _asked_at(sources: Mapping[str, str], key: str) -> str:
    """The source of a key: the command line also where only a key below it stands there."""
    below = (source for name, source in sources.items() if name.startswith(f"{key}."))
    return COMMAND_LINE if COMMAND_LINE in below else source_of(sources, key)


def _forget(written: dict[Place, str], key: str) -> dict[Place, str]:
    """Takes out what was written at a key and below it."""
    start = tuple(key.split("."))
    return {place: written.pop(place) for place in list(written) if place[: len(start)] == start}


def _plain(value: Any) -> str:
    return shown(value).strip("'")


def _section_of(content: Any, key: str) -> tuple[dict[str, Any] | None, str]:
    *sections, name = key.split(".")
    for section in sections:
        content = content.get(section) if isinstance(content, dict) else None
    return (content if isinstance(content, dict) else None), name
