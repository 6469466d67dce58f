# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale export` and `ahpa-scale import`: models to and from the files of other projects.

Heavy imports are inside the functions.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from ahpa_scale import console, storage
from ahpa_scale.checkpoint import content
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.find import StoredCheckpoint, some_checkpoints_at
from ahpa_scale.commands import options
from ahpa_scale.commands.reading import moving, newest_of, stepping_over
from ahpa_scale.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ahpa_scale.interchange.official import Layout
    from ahpa_scale.interchange.stored import StoredModel
    from ahpa_scale.models.description import ModelDescription, WeightsKind

#: Formats, and the ending that their file has; "" is a folder.
_ENDINGS = {"safetensors": ".safetensors", "sit": ".pt", "diffusers": ""}

Kind = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="'ema' or 'model' (default: the averages where there are any)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def export(
    url: Annotated[
        str,
        typer.Argument(
            help="A run's save_folder, one checkpoint, or a file or folder that was imported or "
            "exported: local path, s3://, gs:// ...",
            callback=options.ANY,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Local file or folder.", callback=options.LOCAL),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="safetensors (one file that tells what it is), sit (a .pt file for the official "
            "SiT code) or diffusers (a folder)."
        ),
    ] = "safetensors",
    kind: Kind = None,
    vae: Annotated[
        options.Text,
        typer.Option(
            help="diffusers: folder of the VAE, to be copied.",
            show_default="the run's, where it is a folder or 'demo'",
            callback=options.VAE,
        ),
    ] = None,
    overwrite: Overwrite = False,
    progress: options.Progress = True,
) -> None:
    """Write the DiT of a checkpoint, or of a folder's newest whole one, for other programs.

    The names are the official DiT's and SiT's; what is attached for alignment is left out. Every
    byte is verified first.
    """
    chosen, target = _weights_kind(kind), storage.local_path(out)
    _check_target(target, out, format, overwrite)
    if vae is not None and format != "diffusers":
        raise UserError(f"--vae: the format {format} holds no VAE")
    source = _source(url, chosen, progress)
    if format == "safetensors":
        from ahpa_scale.models.description import DESCRIPTION
        from ahpa_scale.tensor_files import write_safetensors

        facts: dict[str, str] = {"kind": source.kind}
        if source.batch is not None:
            facts["batch"] = str(source.batch)
        if source.description is not None:
            facts[DESCRIPTION] = source.description.to_json()
        write_safetensors(source.weights, target, facts)
    else:
        stored = source.stored()
        if format == "sit":
            _write_sit(stored, target)
        else:
            _write_diffusers(stored, target, vae, overwrite)
    what = "averages" if source.kind == "ema" else "trained weights"
    console.tell(f"{out}: {what} of {source.place}, {len(source.weights)} tensors")


def bring(
    file: Annotated[
        str,
        typer.Argument(
            help="A .pt file of the official DiT, SiT, REPA or iREPA code, or a diffusers folder "
            "with a DiTTransformer2DModel.",
            callback=options.ANY,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT.safetensors", help="Local file to write.", callback=options.LOCAL
        ),
    ],
    layout: Annotated[
        options.Text,
        typer.Option("--as", help="dit, sit or repa, for a file that does not tell it."),
    ] = None,
    heads: Annotated[
        options.Number,
        typer.Option(help="Attention heads, for a width that no published size has."),
    ] = None,
    kind: Kind = None,
    overwrite: Overwrite = False,
) -> None:
    """Write another project's model as one file that tells what it is.

    Pickles in the file are read as data and never executed. The weights stay as they are, to the
    bit; the description says how time and output are meant.
    """
    chosen, target = _weights_kind(kind), storage.local_path(out)
    _check_target(target, out, "safetensors", overwrite)
    if layout not in (None, "dit", "sit", "repa"):
        raise UserError(f"--as {layout!r}: choose dit, sit or repa")
    from ahpa_scale.interchange.official import Told
    from ahpa_scale.models.description import DESCRIPTION
    from ahpa_scale.run.drawable import network_of
    from ahpa_scale.run.weights import open_weights
    from ahpa_scale.tensor_files import write_safetensors

    stored = open_weights(file, chosen, Told(cast("Layout | None", layout), heads))
    network_of(stored)  # refuses weights that do not fit their description
    for remark in stored.remarks:
        options.remark(f"{file}: {remark}")
    told = stored.description
    facts = {"kind": told.kind, DESCRIPTION: told.to_json()}
    write_safetensors(stored.weights, target, facts)
    console.tell(
        f"{out}: depth {told.depth}, width {told.width}, patch {told.patch_size}, "
        f"{told.num_classes} classes, convention {told.convention!r}, path {told.path!r}, "
        f"{len(stored.weights)} tensors"
    )


@dataclass(frozen=True)
class _Source:
    """Weights to export. A checkpoint that does not hold its configuration has no description."""

    weights: dict[str, Tensor]
    kind: WeightsKind
    batch: int | None
    description: ModelDescription | None
    place: str

    def stored(self) -> StoredModel:
        """The weights with their description.

        Raises:
            UserError: there is none.
        """
        from ahpa_scale.interchange.stored import StoredModel

        if self.description is None:
            raise UserError(
                f"{self.place} does not tell its configuration: only --format safetensors can be "
                "written"
            )
        return StoredModel(self.description, self.weights, self.place)


def _source(url: str, kind: WeightsKind | None, progress: bool) -> _Source:
    from ahpa_scale.run.weights import holds_checkpoints, open_weights

    if holds_checkpoints(url):
        return _of_checkpoint(url, kind, progress)
    stored = open_weights(url, kind)
    for remark in stored.remarks:
        options.remark(f"{url}: {remark}")
    told = stored.description
    return _Source(dict(stored.weights), told.kind, told.batch, told, stored.place)


def _of_checkpoint(url: str, kind: WeightsKind | None, progress: bool) -> _Source:
    checkpoints = some_checkpoints_at(url)
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:

        def fetch(checkpoint: StoredCheckpoint) -> list[str]:
            if local:
                return stepping_over(checkpoint, content.damage(checkpoint, moved))
            return stepping_over(checkpoint, content.copy(checkpoint, Path(room), moved))

        local = not storage.is_remote(url)
        with moving("verifying", newest_of(checkpoints), progress) as (moved, _):
            source = content.newest_whole(checkpoints, fetch)
        from ahpa_scale.checkpoint.weights import read_backbone
        from ahpa_scale.run.weights import describe_checkpoint

        folder = storage.local_path(source.url) if local else Path(room)
        try:
            written, weights = read_backbone(folder, kind)
        except CheckpointError as error:
            raise CheckpointError(f"{source.url}: {error}") from None
        # Cloned, because the copy's files are removed while they are mapped into memory.
        own = {name: value.clone() for name, value in weights.items()}
        described = describe_checkpoint(source, written)
        return _Source(own, written, source.batch, described, source.url)


def _write_sit(stored: StoredModel, target: Path) -> None:
    import torch

    from ahpa_scale.interchange.sit import sit_content

    made = sit_content(stored)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as room:
        file = Path(room, target.name)
        torch.save(made, file)
        storage.put_file(file, target)
    options.remark(
        f"{target}: sign and time are SiT's. Its sample.py takes --ckpt, --num-classes "
        f"{stored.description.num_classes}, --path-type "
        f"{'GVP' if stored.description.path == 'gvp' else 'Linear'} and learn_sigma="
        f"{stored.description.learn_sigma}"
    )


def _write_diffusers(stored: StoredModel, target: Path, vae: str | None, overwrite: bool) -> None:
    from ahpa_scale.interchange.diffusers_folder import write_diffusers
    from ahpa_scale.run.decoder import decoder_folder

    told = stored.description
    folder = decoder_folder(told, vae)
    if folder is None:
        options.remark(
            f"the VAE {told.vae!r} is not on this machine and is left out: README.md names it"
        )
    write_diffusers(stored, target, folder, overwrite=overwrite)


def _check_target(target: Path, out: str, format: str, overwrite: bool) -> None:
    if format not in _ENDINGS:
        raise UserError(f"unknown format {format!r}; choose {', '.join(_ENDINGS)}")
    ending = _ENDINGS[format]
    if ending and target.suffix != ending:
        raise UserError(f"{out} must end in {ending}: that is what is written")
    if ending and (target.is_dir() or (target.exists() and not overwrite)):
        raise UserError(f"{out} exists already; choose another name, or --overwrite a file")
    if not ending and not storage.is_free(target) and not (overwrite and target.is_dir()):
        raise UserError(f"{out} exists already; choose another name, or --overwrite a folder")


def _weights_kind(text: str | None) -> WeightsKind | None:
    kinds: dict[str | None, WeightsKind | None] = {None: None, "ema": "ema", "model": "model"}
    if text not in kinds:
        raise UserError(f"unknown kind {text!r}; choose ema or model")
    return kinds[text]
