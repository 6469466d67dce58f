# SPDX-License-Identifier: Apache-2.0
"""One run's model, and measurements of the weights that are put into it.

Shapes: N generated pictures, B batch, S the picture's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ahpa_scale import storage
from ahpa_scale.checkpoint.weights import Kind
from ahpa_scale.commands.evaluate.rows import Settings
from ahpa_scale.config.brought import bring
from ahpa_scale.config.checks.data import check_data, check_vae_weights
from ahpa_scale.config.checks.static import check_guidance
from ahpa_scale.config.evaluation import Evaluation
from ahpa_scale.config.schema import Config
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.stream import build_loader
from ahpa_scale.errors import UserError
from ahpa_scale.evaluation.feature_sets import GROUPS, FeatureSet, collect
from ahpa_scale.evaluation.heldout import heldout_flow
from ahpa_scale.evaluation.networks import INCEPTION, Network
from ahpa_scale.evaluation.picture_sets import PictureSet, features_of
from ahpa_scale.evaluation.samples import ExactDecoder, draw_samples, sample_batches
from ahpa_scale.models.backbone import Backbone
from ahpa_scale.models.flow import Path
from ahpa_scale.models.vae import FrozenVAE
from ahpa_scale.models.vae_config import LatentScaling
from ahpa_scale.precision import evaluation_autocast
from ahpa_scale.progress import progress_bar
from ahpa_scale.run.build import build_generator
from ahpa_scale.run.guide import open_guide
from ahpa_scale.run.trained import take_weights, unaligned
from ahpa_scale.sampling.grid import PER_CLASS, class_rows, image_grid
from ahpa_scale.sampling.settings import SamplerSettings, settings_from

_FIRST_CLASSES = 8


class Subject:
    """What all checkpoints of a run have in common.

    Args:
        wanted: the command's options.
        config: the run's configuration.
        card: card of the held-out data.
        told: the checkpoint's facts about the run's own data; None if it has none.
        before: settings of existing rows; they fill in options that were not given.
        networks: networks that compare pictures.
        reference: real pictures; None if nothing is compared.
        room: local folder for copies of the data.
        tell: prints a line for people.

    Raises:
        UserError: data, options and run don't fit together.
        OSError: a store can't be reached.
    """

    def __init__(
        self,
        wanted: Evaluation,
        config: Config,
        card: DatasetCard,
        told: Mapping[str, Any] | None,
        before: Settings | None,
        networks: Sequence[Network],
        reference: PictureSet | None,
        room: str,
        tell: Callable[[str], None],
    ) -> None:
        brought = bring(config, card, wanted.data, told, tell)
        if brought.known:
            tell(
                f"warning: {wanted.data} is what the run was trained on: its loss is not a "
                "held-out one"
            )
        card = brought.card
        check_data(unaligned(config, card), card)
        self._wanted, self._room, self._run_name = wanted, room, config.run_name
        self._tell = tell
        self._config = config
        self._sampler = _sampler(config, wanted, before)
        self._chosen = before["classes"] if before else config.sampling.classes
        self._columns = PER_CLASS if before is None else before["num_per_class"]
        self._card = card
        self._labels = None if brought.labels is None else torch.tensor(brought.labels)
        self._pictures = pictures_of(wanted, card)
        self.kind = _kind(config, wanted, before)
        self._networks, self._reference = networks, reference

    def settings(self) -> Settings:
        """All that the figures depend on besides the weights, ready for JSON."""
        wanted = self._wanted
        facts = [dict(network.facts) for network in self._networks]
        return {
            "run_name": self._run_name,
            "data": self._card.fingerprint,
            "pictures": self._pictures,
            "bins": wanted.bins,
            "weights": self.kind,
            "classes": self._classes,
            "num_per_class": self._columns,
            **self._sampler.told(),
            "samples": wanted.samples,
            "reference": self._reference.digest if self._reference else None,
            # A key of its own since before there were other networks.
            "inception": next((f["weights"] for f in facts if f["name"] == INCEPTION), None),
            **({"networks": facts} if facts else {}),
        }

    def load(self) -> None:
        """Builds the model and opens the data: the slow part, once all is known to fit.

        Raises:
            UserError: the VAE isn't there, or is not the one of the data.
        """
        device = torch.device(self._wanted.device)
        vae = FrozenVAE.from_pretrained(self._config.vae.path)
        check_vae_weights(self._config, self._card, vae.identity)
        self._decoder = ExactDecoder(vae.to(device))
        self._generator = build_generator(self._config, self._card)
        self._generator.dit.to(device)
        place = self._sampler.guide
        self._guide = None if place is None else open_guide(place, self._generator.dit, device)
        self._loader = build_loader(
            self._wanted.data,
            local=self._room if storage.is_remote(self._wanted.data) else None,
            batch_size=min(self._wanted.batch_size, self._pictures),
            levels=(),
            shuffle=False,
            drop_last=False,
        )

    def take(self, weights: Mapping[str, Tensor], place: str) -> None:
        """Puts a checkpoint's weights into the model.

        Raises:
            UserError: they are another model's.
        """
        take_weights(self._generator.dit, weights, place)

    def loss(self) -> dict[str, Any]:
        """``flow`` and ``flow_t``, see `heldout_flow`."""
        with self._precision():
            return heldout_flow(self._generator, self._held_out(), self._wanted.bins)

    def grid(self) -> Image.Image:
        """A row per class, from the noise that the run's own grids start from."""
        names = ("",) if self._config.model.unconditional else self._card.classes
        device = torch.device(self._wanted.device)
        rows = class_rows(self._classes, self._columns, device)
        with self._precision():
            images_B3SS = draw_samples(*self._drawn_by(), *rows, **self._drawing())
        return image_grid(images_B3SS, self._columns, [names[label] for label in self._classes])

    def real(self) -> list[FeatureSet]:
        """What each network says of the real pictures."""
        assert self._reference is not None
        batch_size, shown = self._wanted.batch_size, self._wanted.progress
        real = features_of(self._reference, self._networks, batch_size, shown=shown)
        self._reference.rejects.write(self._wanted.out)
        summary = self._reference.rejects.summary(self._wanted.out)
        if summary is not None:
            self._tell(summary)
        return real

    def made(self) -> list[FeatureSet]:
        """What each network says of generated pictures, equally many per class."""
        return collect(self._networks, self._generated(), GROUPS)

    def _generated(self) -> Iterator[Tensor]:
        total = self._wanted.samples
        assert total is not None
        labels_N = torch.arange(total) % self._generator.dit.num_classes
        batches = sample_batches(*self._drawn_by(), labels_N, **self._drawing())
        with self._bar(total, "samples") as bar:
            while True:
                # Left before each yield, so that the caller keeps its own precision.
                with self._precision():
                    images_B3SS = next(batches, None)
                if images_B3SS is None:
                    return
                yield images_B3SS
                bar.update(len(images_B3SS))

    def _held_out(self) -> Iterator[Mapping[str, Tensor]]:
        """The first pictures in order: `prepare` has shuffled them already."""
        left = self._pictures
        with self._bar(left, "held-out loss") as bar:
            for batch in self._loader:
                if self._labels is not None:
                    batch["label"] = self._labels[batch["label"]]
                yield {name: value[:left] for name, value in batch.items()}
                bar.update(min(left, len(batch["index"])))
                left -= len(batch["index"])
                if left <= 0:
                    return

    def _bar(self, total: int, desc: str) -> Any:
        return progress_bar(total=total, unit="picture", desc=desc, shown=self._wanted.progress)

    @property
    def _classes(self) -> list[int]:
        _, _, classes = self._config.model.sizes()
        return list(self._chosen or range(min(_FIRST_CLASSES, classes)))

    def _drawn_by(self) -> tuple[Backbone, ExactDecoder, LatentScaling, Path]:
        return self._generator.dit, self._decoder, self._card.scaling, self._generator.path

    def _drawing(self) -> dict[str, Any]:
        batch_size = self._wanted.batch_size
        return {"settings": self._sampler, "guide": self._guide, "batch_size": batch_size}

    def _precision(self) -> AbstractContextManager[None]:
        return evaluation_autocast(torch.device(self._wanted.device))


def pictures_of(wanted: Evaluation, card: DatasetCard) -> int:
    """How many held-out pictures are looked at."""
    return min(card.num_samples, wanted.pictures or card.num_samples)


def _kind(config: Config, wanted: Evaluation, before: Settings | None) -> Kind:
    if wanted.kind == "ema" and config.ema.decay is None:
        raise UserError("the run has no averages (ema.decay is null): --weights model")
    told: Kind | None = before["weights"] if before else None
    return wanted.kind or told or ("model" if config.ema.decay is None else "ema")


def _sampler(config: Config, wanted: Evaluation, before: Settings | None) -> SamplerSettings:
    """The sampler of the earlier rows, or the run's own, with what the command changes."""
    own = config.sampling.sampler() if before is None else settings_from(before)
    settings = wanted.sampler.applied(own)
    check_guidance(config, settings)
    return settings
