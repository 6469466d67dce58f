# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints of the official DiT, SiT, REPA and iREPA code.

Their training scripts save ``{"model", "ema", "opt", "args"}``; published files are bare state
dicts. All have DiT's names. REPA's projectors are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ahpa_scale.errors import UserError
from ahpa_scale.interchange.shapes import infer_model
from ahpa_scale.interchange.sit import OURS, read_ours
from ahpa_scale.interchange.stored import StoredModel
from ahpa_scale.interchange.torch_files import StoredTensor, open_torch_file
from ahpa_scale.models.description import Convention, ModelDescription, PathName, WeightsKind
from ahpa_scale.models.dit_config import DIT_SIZES
from ahpa_scale.models.vae_config import LatentScaling

Layout = Literal["dit", "sit", "repa"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

#: Names of published bare files (``download.py`` of DiT and SiT): they hold the averages.
_PUBLISHED: dict[str, Layout] = {
    "DiT-XL-2-256x256.pt": "dit",
    "DiT-XL-2-512x512.pt": "dit",
    "SiT-XL-2-256x256.pt": "sit",
}
_PROJECTORS, _LEGACY = "projectors.", "decoder_blocks."
_REPA_ONLY, _IREPA_ONLY = ("proj_coeff", "enc_type"), ("spnorm_method", "projection_layer_type")
_CONVENTIONS: dict[Layout, Convention] = {"dit": "dit-eps", "sit": "sit", "repa": "velocity"}
#: The path that a training argument names, by layout. REPA's time is ours: its noise is at t = 1.
_PATHS: dict[str, dict[str, PathName]] = {
    "sit": {"Linear": "linear", "GVP": "gvp"},
    "repa": {"linear": "linear", "cosine": "gvp"},
}
_PREDICTION = {"sit": "velocity", "repa": "v"}
_DIT_STEPS = 1000
_SD_CHANNELS, _SD_FACTOR = 4, 0.18215


@dataclass(frozen=True)
class Told:
    """What a user tells about a file that does not tell it.

    Attributes:
        layout: whose code trained the weights.
        heads: attention heads.
    """

    layout: Layout | None = None
    heads: int | None = None


def read_official(
    path: Path, where: str, kind: WeightsKind | None = None, told: Told | None = None
) -> StoredModel:
    """Reads a ``.pt`` file of the official code, or one that `export --format sit` wrote.

    Args:
        path: a local file.
        where: its name in messages.
        kind: 'ema' or 'model'; None takes the averages where there are any.
        told: what the user tells about it.

    Raises:
        UserError: it is no such file, it is damaged, or it does not tell whose weights it holds.
    """
    told = told or Told()
    with open_torch_file(path, where) as file:
        if isinstance(file.value, dict) and OURS in file.value:
            return read_ours(file.value[OURS], _tensors(file.value.get("ema")), where, kind)
        found, state = _chosen(file.value, where, kind)
        raw = file.value.get("args") if isinstance(file.value, dict) else None
        args: dict[str, Any] = raw if isinstance(raw, dict) else {}
        named, remarks = _backbone(state)
        shapes = {name: tensor.shape for name, tensor in named.items()}
        classes, heads = args.get("num_classes"), told.heads or _heads_of(args)
        model = infer_model(
            shapes, where, classes=classes if type(classes) is int else None, heads=heads
        )
        layout = told.layout or _layout(args, state, path.name, where)
        described = _described(model, layout, args, where)
        steps = file.value.get("steps") if isinstance(file.value, dict) else None
        described = replace(
            described,
            kind=found,
            batch=steps if type(steps) is int and 0 <= steps < 1 << 63 else None,
            run_name=path.stem[:200],
        )
        weights = {name: tensor.load().clone() for name, tensor in named.items()}
    if file.dropped:
        names = ", ".join(sorted(file.dropped)[:3])
        remarks.append(f"{sum(file.dropped.values())} objects that are no data dropped ({names})")
    if described.scaling is None:
        remarks.append("the file does not tell how its latents are scaled")
    return StoredModel(described, weights, where, tuple(remarks))


def _chosen(
    content: Any, where: str, kind: WeightsKind | None
) -> tuple[WeightsKind, dict[str, StoredTensor]]:
    """The state dict that is meant, and which it is."""
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no weights")
    found: dict[WeightsKind, dict[str, StoredTensor]] = {}
    kinds: tuple[WeightsKind, ...] = get_args(WeightsKind)
    for each in kinds:
        state = _tensors(content.get(each))
        if state:
            found[each] = state
    bare = _tensors(content)
    if not found and bare:
        found["ema" if Path(where).name in _PUBLISHED else "model"] = bare
    if not found:
        raise UserError(f"{where} holds no weights: it has neither 'ema' nor 'model'")
    chosen = kind or ("ema" if "ema" in found else "model")
    if chosen not in found:
        raise UserError(f"{where} holds the kind {next(iter(found))!r} only, not {chosen!r}")
    return chosen, found[chosen]


def _tensors(content: Any) -> dict[str, StoredTensor]:
    if not isinstance(content, dict):
        return {}
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }


def _backbone(state: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], list[str]]:
    """The weights that the backbone has, by today's names."""
    own = {name: value for name, value in state.items() if not name.startswith(_PROJECTORS)}
    remarks = []
    if len(own) < len(state):
        remarks.append(f"{len(state) - len(own)} tensors of REPA's projectors dropped")
    # REPA's first checkpoints call the blocks behind the aligned one decoder_blocks.
    first = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
    named = {}
    for name, value in own.items():
        if name.startswith(_LEGACY):
            number, _, rest = name.removeprefix(_LEGACY).partition(".")
            if number.isascii() and number.isdigit() and len(number) < 5:
                name = f"blocks.{first + int(number)}.{rest}"
        named[name] = value
    return named, remarks


def _layout(args: Mapping[str, Any], state: Mapping[str, Any], name: str, where: str) -> Layout:
    if any(key.startswith(_PROJECTORS) for key in state) or any(key in args for key in _REPA_ONLY):
        return "repa"
    if "path_type" in args:
        return "sit"
    if "image_size" in args:
        return "dit"
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    raise UserError(
        f"{where} does not tell whose weights it holds: name it with --as dit, --as sit or "
        "--as repa"
    )


def _described(
    model: ModelDescription, layout: Layout, args: Mapping[str, Any], where: str
) -> ModelDescription:
    """Adds what the layout and the training arguments tell."""
    path: PathName = "vp" if layout == "dit" else "linear"
    if layout in _PATHS and "path_type" in args:
        known = _PATHS[layout]
        if not isinstance(args["path_type"], str) or args["path_type"] not in known:
            raise UserError(
                f"{where} was trained on the path {args['path_type']!r:.40}, which is not read; "
                f"known are {', '.join(known)}"
            )
        path = known[args["path_type"]]
    wanted = _PREDICTION.get(layout)
    if wanted is not None and args.get("prediction", wanted) != wanted:
        raise UserError(
            f"{where} predicts {args['prediction']!r:.40}, which is not read; only velocities are"
        )
    if layout == "dit" and args.get("diffusion_steps", _DIT_STEPS) != _DIT_STEPS:
        raise UserError(f"{where} was trained on other than {_DIT_STEPS} steps, which is not read")
    # iREPA normalises latents by statistics that lie in another file.
    sd = model.in_channels == _SD_CHANNELS and not any(key in args for key in _IREPA_ONLY)
    factors = (_SD_FACTOR,) * _SD_CHANNELS
    decoder = args.get("vae") if args.get("vae") in ("ema", "mse") else "mse"
    return replace(
        model,
        path=path,
        convention=_CONVENTIONS[layout],
        scaling=LatentScaling("config", (0.0,) * _SD_CHANNELS, factors) if sd else None,
        vae=f"stabilityai/sd-vae-ft-{decoder}" if model.in_channels == _SD_CHANNELS else "",
    )


def _heads_of(args: Mapping[str, Any]) -> int | None:
    """The heads of the size that ``--model`` names, such as SiT-XL/2."""
    name = args.get("model")
    if not isinstance(name, str):
        return None
    size = DIT_SIZES.get(name.partition("/")[0].rpartition("-")[2])
    return None if size is None else size.heads
