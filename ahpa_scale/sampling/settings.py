# SPDX-License-Identifier: Apache-2.0
"""All settings of the sampler in one value, and named sets of them. Does not import torch.

The sample grid of a run, ``ahpa-scale sample`` and ``ahpa-scale evaluate`` use the same value.
Times: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ahpa_scale.errors import UserError

#: The first three take the given number of steps. The last two choose their steps themselves.
METHODS = ("euler", "heun", "sde", "dopri5", "dopri5_batch")
_ADAPTIVE = ("dopri5", "dopri5_batch")
#: Settings that came after `evaluation.jsonl`: rows name them only where they are not the default.
_LATER = ("guidance_interval", "guidance_channels", "guide", "last_step", "time_shift")


@dataclass(frozen=True)
class SamplerSettings:
    """How latents are drawn.

    Attributes:
        method: ``euler`` and ``heun`` solve the probability-flow ODE in equal steps. ``dopri5``
            solves it with an error of at most 1e-3 relative or 1e-6 absolute per step, and chooses
            the steps of each sample by itself (the library torchode). ``dopri5_batch`` chooses the
            same steps for the whole batch (torchdiffeq), as published numbers were made; its
            samples depend on the batch that they are drawn in. ``sde`` is Euler-Maruyama on the
            reverse-time SDE.
        steps: integration steps. Model calls: ``steps``, for ``heun`` 2 * steps - 1.
        guidance_scale: v_null + scale * (v_class - v_null) (Ho and Salimans 2022, arXiv 2207.12598,
            equation 6). 1 is the plain model at half the cost.
        guidance_interval: guide only at times within it, both ends included (Kynkaanniemi et al.
            2024, arXiv 2404.07724); elsewhere the plain model is used.
        guidance_channels: guide only the first so many channels, as the released code of DiT, SiT
            and LightningDiT does; None guides all.
        guide: a second checkpoint, for autoguidance: v_guide + scale * (v - v_guide), both with
            the class (Karras et al. 2024, arXiv 2406.02507, equation 4). None: the null class.
        last_step: ``sde`` only: length of the final, noise-free step. 0.04 as in SiT and REPA. A
            single step is the final one and goes from 1 to 0.
        time_shift: ``euler`` and ``heun`` only: the steps' times are k t / (1 + (k - 1) t) of equal
            ones; above 1 takes smaller steps at high noise (Esser et al. 2024, arXiv 2403.03206,
            equation 23).
        seed: of the noise.

    Raises:
        UserError: an unknown method, a number out of range, or a setting without effect.
    """

    method: str = "euler"
    steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int | None = None
    guide: str | None = None
    last_step: float = 0.04
    time_shift: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        # JSON gives lists back.
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        problem = next(self._problems(), None)
        if problem is not None:
            raise UserError(problem)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its steps by itself."""
        return self.method in _ADAPTIVE

    @property
    def guided(self) -> bool:
        """Whether the plain model is not all that is asked."""
        return self.guidance_scale != 1.0

    def told(self) -> dict[str, Any]:
        """The settings as plain data for a row: those that later versions added only where they
        are not the default, so that rows of older versions stay comparable.
        """
        default = SamplerSettings()
        plain = asdict(self) | {"guidance_interval": list(self.guidance_interval)}
        return {
            name: value
            for name, value in plain.items()
            if name not in _LATER or getattr(self, name) != getattr(default, name)
        }

    def changed(self, preset: str | None = None, **given: Any) -> SamplerSettings:
        """These settings, with those of a preset and then with those that are given and not None.

        Raises:
            UserError: an unknown preset, or the result is none that can be used.
        """
        named = {} if preset is None else preset_named(preset).settings
        told = {name: value for name, value in given.items() if value is not None}
        changed = replace(self, **{**named, **told})
        if changed.adaptive and "steps" in told:
            raise UserError(f"{changed.method} chooses its steps by itself: leave steps out")
        return changed

    def _problems(self) -> Iterator[str]:
        if self.method not in METHODS:
            yield f"unknown sampler {self.method!r}{_nearest(self.method, METHODS)}"
        if self.steps < 1:
            yield f"steps must be at least 1, got {self.steps}"
        if not 1 <= self.guidance_scale <= 100:
            yield f"guidance_scale must be between 1 and 100, got {self.guidance_scale}"
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            yield f"guidance_interval must be 0 <= low <= high <= 1, got {low} and {high}"
        if self.guidance_channels is not None and self.guidance_channels < 1:
            yield f"guidance_channels must be at least 1, got {self.guidance_channels}"
        if not 0 < self.last_step < 1:
            yield f"last_step must be between 0 and 1, got {self.last_step}"
        if not 0.01 <= self.time_shift <= 100:
            yield f"time_shift must be between 0.01 and 100, got {self.time_shift}"
        if self.time_shift != 1 and self.method not in ("euler", "heun"):
            yield f"time_shift has no effect on the method {self.method!r}: it belongs to euler"
        if self.guide is not None and not self.guided:
            yield "a second checkpoint guides only with a guidance_scale above 1"


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Attributes:
        settings: those that it sets; the others stay as they are.
        source: where they were published, and what they reproduce.
    """

    settings: dict[str, Any]
    source: str


@dataclass(frozen=True)
class SamplerOptions:
    """What a command line changes of a run's own sampler; None leaves it.

    Attributes:
        preset: a name of `PRESETS`; the others change some of it.
        method, steps, guidance_scale, guidance_interval, guide, time_shift, seed: see
            `SamplerSettings`.

    Raises:
        UserError: a value that is never valid.
    """

    preset: str | None = None
    method: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guide: str | None = None
    time_shift: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in self._given.items():
            # Alone, beside settings that leave room for each of them.
            beside = SamplerSettings(guidance_scale=2.0)
            try:
                beside.changed(value) if name == "preset" else beside.changed(**{name: value})
            except UserError as error:
                raise UserError(f"--{name.replace('_', '-')}: {error}") from None

    @property
    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def applied(self, settings: SamplerSettings) -> SamplerSettings:
        """A run's own settings, changed.

        Raises:
            UserError: the result is none that can be used.
        """
        return settings.changed(**self._given)


_SIT_SDE = {"method": "sde", "steps": 250, "last_step": 0.04}
_ALL_TIMES = {"guidance_interval": (0.0, 1.0), "guide": None, "time_shift": 1.0}
_PLAIN = {"guidance_scale": 1.0, "guidance_channels": None, **_ALL_TIMES}

PRESETS = {
    "sit-ode-dopri5": Preset(
        {"method": "dopri5_batch", **_PLAIN},
        "SiT (arXiv 2401.08740), default of its sample_ddp.py in mode ODE; no guidance",
    ),
    "sit-sde250": Preset(
        {**_SIT_SDE, **_PLAIN},
        "SiT, table 1 and default of sample_ddp.py in mode SDE; REPA without guidance; no guidance",
    ),
    "sit-sde250-cfg1.5": Preset(
        {**_SIT_SDE, **_ALL_TIMES, "guidance_scale": 1.5, "guidance_channels": 3},
        "SiT, its best guided ImageNet number; the released code guides three of four channels",
    ),
    "repa-sde250-cfg1.8-interval0.7": Preset(
        {
            **_SIT_SDE,
            **_PLAIN,
            "guidance_scale": 1.8,
            "guidance_interval": (0.0, 0.7),
        },
        "REPA (arXiv 2410.06940), its best guided ImageNet number; all channels",
    ),
    "lightningdit": Preset(
        {
            **_PLAIN,
            "method": "euler",
            # 250 points in time, from the first to the last.
            "steps": 249,
            "guidance_scale": 6.7,
            # The released code counts time from noise to data: its 0.125 and 0.3.
            "guidance_interval": (0.0, 0.875),
            "time_shift": 1 / 0.3,
            "guidance_channels": 3,
        },
        "LightningDiT (arXiv 2501.01423), configuration of 800 epochs; the released code guides "
        "the first three channels",
    ),
    "fast": Preset(
        {"method": "heun", "steps": 18, "time_shift": 1.0},
        "ours, for a look: 35 model calls; guidance stays as it is",
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{_nearest(name, tuple(PRESETS))}")
    return PRESETS[name]


def settings_from(told: dict[str, Any]) -> SamplerSettings:
    """The settings in a row that `SamplerSettings.told` filled, among other entries."""
    known = {field.name for field in fields(SamplerSettings)}
    return SamplerSettings(**{name: value for name, value in told.items() if name in known})


def _nearest(name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f": did you mean {nearest!r}? Valid: {', '.join(known)}"
