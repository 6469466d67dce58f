# SPDX-License-Identifier: Apache-2.0
"""Keys that earlier versions had, and the fixed value of each since: nobody needed another one.
And values that are written otherwise today. What earlier versions saved can still be read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ahpa_scale import console
from ahpa_scale.config.errors import ConfigError, speaks_for_all_ranks
from ahpa_scale.config.schema.run import source_of

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
#: Key -> the value as it was written, and as it is written today.
RESPELT: dict[str, tuple[Any, Any]] = {"checkpoint.keep": (-1, None)}


def drop_removed(content: Any, sources: Mapping[str, str], *, elsewhere: bool) -> None:
    """Takes removed keys out of a configuration and respells values, in place.

    Args:
        content: resolved, not yet validated.
        sources: where each key was written.
        elsewhere: the run is another process's and is only inspected: a value other than the fixed
            one gives a warning and is left out.

    Raises:
        ConfigError: this run asks for such a value.
    """
    for key, always in REMOVED.items():
        section, name = _section_of(content, key)
        if section is None or name not in section:
            continue
        asked = section.pop(name)
        if asked == always:
            continue
        problem = f"is no key any more: it is always {always}, and {asked!r} was asked for"
        if not elsewhere:
            raise ConfigError(source_of(sources, key), key, problem)
        if speaks_for_all_ranks():
            console.say(f"{key} {problem}; it is left out", level=logging.WARNING)
    for key, (before, today) in RESPELT.items():
        section, name = _section_of(content, key)
        if section is not None and section.get(name) == before:
            section[name] = today


def with_removed(told: dict[str, Any]) -> dict[str, Any]:
    """Adds the keys that earlier versions wrote to a dumped configuration."""
    for key, always in REMOVED.items():
        section, name = _section_of(told, key)
        if section is not None:
            section.setdefault(name, always)
    return told


def _section_of(content: Any, key: str) -> tuple[dict[str, Any] | None, str]:
    *sections, name = key.split(".")
    for section in sections:
        content = content.get(section) if isinstance(content, dict) else None
    return (content if isinstance(content, dict) else None), name
