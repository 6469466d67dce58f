# SPDX-License-Identifier: Apache-2.0
"""The work of `ahpa-scale sample`: opens the model, draws what is missing, packs it.

Shapes: N pictures, B batch, S the picture's side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch

from ahpa_scale import __version__, console, storage
from ahpa_scale.commands.sample.packing import MDS_INDEX, pack
from ahpa_scale.commands.sample.pictures import (
    Pictures,
    read_record,
    write_record,
    writers,
)
from ahpa_scale.commands.sample.ranks import Ranks, ranks
from ahpa_scale.config.drawing import Drawing
from ahpa_scale.config.errors import choices
from ahpa_scale.data.planning import check_device
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.samples import ExactDecoder, sample_batches
from ahpa_scale.interchange.official import Layout, Told
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.description import ModelDescription
from ahpa_scale.models.flow import get_path
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import same_on_every_cpu
from ahpa_scale.progress import progress_bar
from ahpa_scale.run.drawable import Drawable, open_model
from ahpa_scale.run.guide import open_guide
from ahpa_scale.sampling.settings import settings_from
from ahpa_scale.writable import try_to_write

#: Classes of a grid that names none.
_FIRST_CLASSES = 8
#: Entries of the record that may change when the same command goes on.
_FREE = ("num", "complete", "version", "torch")


def draw(wanted: Drawing, tell: Callable[[str], None]) -> None:
    """Draws pictures; every rank of a launcher calls it.

    Raises:
        UserError: bad input.
        OSError: a disk or store refuses.
    """
    with ranks() as here:
        name = here.device(wanted.device)
        check_device(name)
        device = torch.device(name)
        work = _Work(wanted, here, device)
        here.first_alone(work.begin)
        with _precision(wanted, device):
            work.draw()
        here.wait()
        here.first_alone(lambda: work.finish(tell))


class _Work:
    """One call of the command on one rank."""

    def __init__(self, wanted: Drawing, here: Ranks, device: torch.device) -> None:
        self._wanted, self._here, self._device = wanted, here, device
        told = None if wanted.layout is None else Told(cast("Layout", wanted.layout))
        self._model = open_model(wanted.checkpoint, wanted.kind, told)
        described = self._model.description
        self._settings = wanted.sampler.applied(settings_from(described.sampler))
        if self._settings.guided and self._settings.guide is None and not described.null_class:
            raise UserError(
                f"{self._model.place} has no null class, which guidance needs: --guidance-scale 1"
            )
        # By every rank, also one that has nothing to draw: ranks of a host share the download.
        place = self._settings.guide
        self._guide = None if place is None else open_guide(place, self._model.backbone, device)
        self._vae = _open_vae(wanted, self._model)
        out = wanted.out
        self._pictures = Pictures(
            out if wanted.written == "folder" else f"{out.rstrip('/')}.parts",
            _labels(wanted, described.num_classes, described.classes),
            _class_names(described),
            wanted.num,
        )

    def begin(self) -> None:
        """Checks the place, and notes there what is drawn."""
        wanted, pictures = self._wanted, self._pictures
        if wanted.written != "folder":
            _check_free(wanted)
        try_to_write(pictures.url)
        before = read_record(pictures.url)
        if before is None and storage.find(pictures.url):
            raise UserError(f"{pictures.url} holds other files: choose another OUT")
        changed = None if before is None else _first_change(before, self._record)
        if changed is not None and not wanted.overwrite:
            name, then, now = changed
            raise UserError(
                f"{pictures.url} holds samples of {name} {then!r}, and now it is {now!r}: choose "
                "another OUT, or --overwrite"
            )
        if changed is not None:
            pictures.remove()
        write_record(pictures.url, self._record)

    def draw(self) -> None:
        """Draws this rank's pictures that are not there yet."""
        here, pictures, described = self._here, self._pictures, self._model.description
        missing = pictures.missing(here.rank, here.world_size)
        if not missing:
            return
        backbone = cast(Backbone, self._model.backbone.to(self._device))
        batches = sample_batches(
            backbone,
            ExactDecoder(self._vae.to(self._device)),
            described.scaling or LatentScaling.from_config(self._vae.config),
            get_path(described.path),
            torch.tensor([pictures.label(n) for n in missing]),
            torch.tensor(missing, device=self._device),
            settings=self._settings,
            guide=self._guide,
            batch_size=self._wanted.batch_size,
        )
        mine = pictures.num // here.world_size
        shown = self._wanted.progress and here.rank == 0
        remaining = iter(missing)
        pending: list[Future[None]] = []
        with (
            writers() as pool,
            progress_bar(total=mine, unit="picture", desc="samples", shown=shown) as bar,
        ):
            bar.update(max(0, mine - len(missing)))
            for images_B3SS in batches:
                images_BSS3 = images_B3SS.permute(0, 2, 3, 1).cpu().numpy()
                for written in pending:
                    written.result()
                pending = [
                    pictures.write(pool, next(remaining), picture) for picture in images_BSS3
                ]
                bar.update(len(images_BSS3))
            for written in pending:
                written.result()

    def finish(self, tell: Callable[[str], None]) -> None:
        """Packs the pictures, and notes that they are complete."""
        wanted, pictures = self._wanted, self._pictures
        record = {**self._record, "complete": True}
        if wanted.written == "folder":
            write_record(pictures.url, record)
        else:
            pack(pictures, wanted.out, wanted.written, wanted.overwrite, wanted.progress)
            pictures.remove()
        what = "averages" if self._model.description.kind == "ema" else "weights"
        for remark in self._model.remarks:
            console.say(f"{self._model.place}: {remark}")
        tell(f"{wanted.out}: {pictures.num} pictures by the {what} of {self._model.place}")

    @cached_property
    def _record(self) -> dict[str, Any]:
        """What the pictures depend on, ready for JSON."""
        pictures, names = self._pictures, self._pictures.names
        return {
            "checkpoint": self._model.place,
            "weights": _digest(self._model.backbone),
            "vae": self._vae.identity,
            "sampler": self._settings.told(),
            "precision": self._wanted.precision,
            "labels": list(pictures.labels),
            "classes": [names[label] for label in pictures.labels] if names else [],
            "num": pictures.num,
            "complete": False,
            "version": __version__,
            "torch": torch.__version__,
        }


def _check_free(wanted: Drawing) -> None:
    """Refuses to replace what is there, unless that is asked and it is of the same format."""
    try:
        names = storage.find(wanted.out)
    except NotADirectoryError:
        names = {}
    if not names and not storage.exists(wanted.out):
        return
    if not wanted.overwrite:
        raise UserError(f"{wanted.out} exists already: choose another OUT, or --overwrite")
    if names and (wanted.written != "mds" or MDS_INDEX not in names):
        raise UserError(f"{wanted.out} is a folder of other files: choose another OUT")


def _open_vae(wanted: Drawing, model: Drawable) -> FrozenVAE:
    described = model.description
    path = wanted.vae or described.vae
    if not path:
        raise UserError(f"{model.place} does not tell its VAE: name it with --vae")
    vae = FrozenVAE.from_pretrained(path)
    if vae.latent_channels != described.in_channels:
        raise UserError(
            f"the VAE {path} has {vae.latent_channels} latent channels, and the model "
            f"{described.in_channels}: name the model's own with --vae"
        )
    if described.vae_identity and vae.identity != described.vae_identity:
        raise UserError(
            f"the VAE {path} has other weights ({vae.identity}) than the one that the model was "
            f"trained with ({described.vae_identity}): name that one with --vae"
        )
    return vae


def _class_names(described: ModelDescription) -> tuple[str, ...]:
    """By label; empty for a model without classes."""
    if described.num_classes == 1:
        return ()
    return tuple(map(described.class_name, range(described.num_classes)))


def _labels(wanted: Drawing, num_classes: int, names: Sequence[str]) -> list[int]:
    """The classes that take turns.

    Raises:
        UserError: a class that the model does not know.
    """
    if wanted.classes is None:
        most = _FIRST_CLASSES if wanted.written == "grid" else num_classes
        return list(range(min(num_classes, most)))
    if wanted.classes in names:  # a name may hold commas
        return [list(names).index(wanted.classes)]
    return [_label(word.strip(), num_classes, names) for word in wanted.classes.split(",")]


def _label(word: str, num_classes: int, names: Sequence[str]) -> int:
    if word in names:
        return list(names).index(word)
    if word.isascii() and word.isdigit() and int(word) < num_classes:
        return int(word)
    known = choices(word, names) if names else f"give numbers from 0 to {num_classes - 1}"
    raise UserError(f"--classes: the model has no class {word!r}; {known}")


def _first_change(
    before: dict[str, Any], record: dict[str, Any]
) -> tuple[str, object, object] | None:
    """The first entry that two records differ in, then and now."""
    for name, now in record.items():
        then = before.get(name)
        if name in _FREE or then == now:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            inner = next(key for key in {**now, **then} if then.get(key) != now.get(key))
            return f"{name} {inner}", then.get(inner), now.get(inner)
        return name, then, now
    return None


def _digest(backbone: torch.nn.Module) -> str:
    """A hash of weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _precision(wanted: Drawing, device: torch.device) -> AbstractContextManager[object]:
    if wanted.precision == "fp32":
        return same_on_every_cpu()
    if device.type == "cpu":
        return nullcontext()  # its fastest precision
    return torch.autocast(device.type, torch.bfloat16)
