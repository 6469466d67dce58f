# SPDX-License-Identifier: Apache-2.0
"""Finds the objects of demo pictures: where they are, how large, of which shape and hue.

A small convolutional network trained on rendered pictures, whose factors are known. Centres are
found as in CenterNet (Zhou, Wang and Kraehenbuehl 2019, arXiv 1904.07850): a heat map peaks at each
object, and the other maps are read at the peak.
Shapes: N B pictures, S the picture's side, hw cells (2 pixels each), O object slots, K shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ahpa_scale.data.demo import DemoSpec, render
from ahpa_scale.data.demo.shapes import SHAPE_NAMES
from ahpa_scale.data.demo.spec import MAX_OBJECTS
from experiments.judges.classifier import Residual, to_pictures
from experiments.judges.training import ShuffledBatches, fit

_CELL = 2
_HEAT_THRESHOLD = 0.4
_FEWEST_VISIBLE = 0.006
_FIRST_HEAT_LOGIT = -3.0


@dataclass(frozen=True)
class Objects:
    """Objects of N pictures in O slots each; found objects are sorted, the surest first.

    Attributes:
        there_NO: bool, which slots hold an object.
        place_NO2: float32 centre, x then y, in picture sides.
        size_NO: float32 size, defined as in the demo's factors, in picture sides.
        hue_NO: float32 in [0, 1), of the colour circle.
        shape_NO: int64, index into the demo's shape names.
    """

    there_NO: Tensor
    place_NO2: Tensor
    size_NO: Tensor
    hue_NO: Tensor
    shape_NO: Tensor

    def part(self, index_B: Tensor) -> Objects:
        """The objects of some of the pictures."""
        return Objects(*(value[index_B] for value in vars(self).values()))


@dataclass(frozen=True)
class Rendered:
    """Demo pictures uint8 [N, 3, S, S] with the known shape of each cell [N, h, w] and objects."""

    images_N3SS: Tensor
    labels_N: Tensor
    shape_Nhw: Tensor
    objects: Objects


def render_many(spec: DemoSpec, seed: int, count: int) -> Rendered:
    """Draw the first `count` pictures of a seed; hardly visible objects are left out."""
    images, labels, shapes = [], [], []
    slots = np.zeros((count, MAX_OBJECTS, 6), np.float32)
    for index in range(count):
        picture = render(spec, seed, index)
        images.append(picture.image)
        labels.append(picture.label)
        shapes.append(picture.maps["shape"][::_CELL, ::_CELL])
        for slot, item in enumerate(picture.factors["objects"]):
            seen = item["visible"] >= _FEWEST_VISIBLE * spec.size**2
            shape = SHAPE_NAMES.index(item["shape"])
            slots[index, slot] = (seen, item["x"], item["y"], item["size"], item["hue"], shape)
    s_NO6 = torch.from_numpy(slots)
    objects = Objects(
        s_NO6[..., 0] > 0, s_NO6[..., 1:3], s_NO6[..., 3], s_NO6[..., 4], s_NO6[..., 5].long()
    )
    maps_Nhw = torch.from_numpy(np.stack(shapes).astype(np.int64))
    return Rendered(to_pictures(np.stack(images)), torch.tensor(labels), maps_Nhw, objects)


class FactorJudge(nn.Module):
    """Convolutional network with an output for every cell of 2x2 pixels.

    Args:
        num_shapes: number of shapes that occur.
    """

    def __init__(self, num_shapes: int) -> None:
        super().__init__()
        self.num_shapes = num_shapes
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 5, 2, 2, bias=False), nn.BatchNorm2d(48), nn.ReLU()
        )
        self.down1, self.down2 = Residual(48, 96, 2), Residual(96, 128, 2)
        self.deep = Residual(128, 128, 1)
        self.across1, self.across2 = nn.Conv2d(128, 96, 1), nn.Conv2d(96, 48, 1)
        self.up1, self.up2 = Residual(96, 96, 1), Residual(48, 64, 1)
        self.last = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        # Per cell: heat, size, offset (2), hue (2), shape of the object centred here, and shape of
        # the object that covers the cell (0 for none).
        self.out = nn.Conv2d(64, 6 + num_shapes + 1 + num_shapes, 1)
        nn.init.constant_(self.out.bias[:1], _FIRST_HEAT_LOGIT)  # type: ignore[index]
        cast(Any, self).to(memory_format=torch.channels_last)

    def forward(self, image_B3SS: Tensor) -> dict[str, Tensor]:
        """Maps over cells, float32 [B, C, h, w] each, of uint8 pictures."""
        x_B3SS = image_B3SS.float().div(127.5).sub(1.0)
        fine = self.stem(x_B3SS.contiguous(memory_format=torch.channels_last))
        middle = self.down1(fine)
        coarse = self.deep(self.down2(middle))
        middle = self.up1(middle + _upsampled(self.across1(coarse), middle))
        fine = self.up2(fine + _upsampled(self.across2(middle), fine))
        out = self.out(self.last(fine)).float()
        names = ("heat", "size", "offset", "hue", "shape", "cover")
        parts = out.split((1, 1, 2, 2, self.num_shapes, 1 + self.num_shapes), dim=1)
        return dict(zip(names, parts, strict=True))

    @torch.no_grad()
    def find(self, image_B3SS: Tensor) -> tuple[Objects, Tensor]:
        """The objects of uint8 pictures, and the shape that covers each cell.

        Returns:
            At most 8 objects per picture, and int64 [B, h, w]: 0 for no object, else 1 + the shape.
        """
        maps = self.forward(image_B3SS)
        heat_B1hw = maps["heat"].sigmoid()
        peak_B1hw = heat_B1hw * (heat_B1hw == F.max_pool2d(heat_B1hw, 3, 1, 1))
        heat_BO, cell_BO = peak_B1hw.flatten(1).topk(MAX_OBJECTS, dim=1)
        at = {name: _gather(map_BChw, cell_BO) for name, map_BChw in maps.items()}
        height, width = heat_B1hw.shape[-2:]
        corner_BO2 = torch.stack((cell_BO % width, cell_BO // width), dim=-1)
        place_BO2 = (corner_BO2 + 0.5 + at["offset"]) / torch.tensor([width, height])
        hue_BO = torch.atan2(at["hue"][..., 1], at["hue"][..., 0]) / (2 * torch.pi) % 1.0
        objects = Objects(
            heat_BO > _HEAT_THRESHOLD,
            place_BO2,
            at["size"][..., 0].exp(),
            hue_BO,
            at["shape"].argmax(dim=-1),
        )
        return objects, maps["cover"].argmax(dim=1)

    @torch.no_grad()
    def find_all(self, images_N3SS: Tensor, batch_size: int = 256) -> tuple[Objects, Tensor]:
        """`find` for any number of pictures."""
        detections = [self.find(part) for part in images_N3SS.split(batch_size)]
        columns = zip(*(vars(objects).values() for objects, _ in detections), strict=True)
        objects = Objects(*(torch.cat(column) for column in columns))
        return objects, torch.cat([cover_Bhw for _, cover_Bhw in detections])


def train_factor_judge(
    spec: DemoSpec, pictures: Rendered, *, steps: int, batch_size: int, seed: int, progress: bool
) -> FactorJudge:
    """Train on rendered pictures of one spec, in float32 as `train_classifier` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = FactorJudge(spec.num_shapes)
    batches = ShuffledBatches(pictures.images_N3SS, batch_size, seed, shift=0)

    def loss(image_B3SS: Tensor, index_B: Tensor) -> Tensor:
        maps = judge(image_B3SS)
        return _loss(maps, pictures.objects.part(index_B), pictures.shape_Nhw[index_B])

    fit(judge, batches, loss, lr=3e-3, steps=steps, desc="factor judge", progress=progress)
    return judge.requires_grad_(False).train(False)


def _upsampled(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, size=like_BCHW.shape[-2:], mode="nearest")


def _gather(map_BChw: Tensor, cell_BO: Tensor) -> Tensor:
    """A map's values at given cells, [B, O, C]."""
    flat_BLC = map_BChw.flatten(2).transpose(1, 2)
    return flat_BLC.gather(1, cell_BO[..., None].expand(-1, -1, flat_BLC.shape[-1]))


def _loss(maps: dict[str, Tensor], objects: Objects, cover_Bhw: Tensor) -> Tensor:
    height, width = cover_Bhw.shape[-2:]
    place_BO2 = objects.place_NO2 * torch.tensor([width, height])
    column_BO = place_BO2[..., 0].long().clamp(0, width - 1)
    row_BO = place_BO2[..., 1].long().clamp(0, height - 1)
    at = {name: _gather(map_BChw, row_BO * width + column_BO) for name, map_BChw in maps.items()}
    there = objects.there_NO
    angle_BO = 2 * torch.pi * objects.hue_NO
    hue_BO2 = torch.stack((angle_BO.cos(), angle_BO.sin()), dim=-1)
    offset_BO2 = place_BO2 - torch.stack((column_BO, row_BO), dim=-1) - 0.5
    log_size_BO = objects.size_NO.clamp(min=1e-3).log()
    return (
        _heat_loss(maps["heat"][:, 0], column_BO, row_BO, there)
        + F.cross_entropy(maps["cover"], cover_Bhw)
        + F.cross_entropy(at["shape"][there], objects.shape_NO[there])
        + F.l1_loss(at["size"][..., 0][there], log_size_BO[there])
        + F.l1_loss(at["offset"][there], offset_BO2[there])
        + F.mse_loss(at["hue"][there], hue_BO2[there])
    )


def _heat_loss(heat_Bhw: Tensor, column_BO: Tensor, row_BO: Tensor, there_BO: Tensor) -> Tensor:
    """The penalty-reduced focal loss of CenterNet (equation 1), Gaussians of one cell's width."""
    y_h, x_w = torch.arange(heat_Bhw.shape[1]), torch.arange(heat_Bhw.shape[2])
    away_BOhw = (x_w - column_BO[..., None, None]) ** 2 + (
        y_h[:, None] - row_BO[..., None, None]
    ) ** 2
    bump_BOhw = torch.exp(-0.5 * away_BOhw) * there_BO[..., None, None]
    target_Bhw = bump_BOhw.amax(dim=1)
    p_Bhw = heat_Bhw.sigmoid()
    centre = (1 - p_Bhw) ** 2 * F.logsigmoid(heat_Bhw)
    rest = (1 - target_Bhw) ** 4 * p_Bhw**2 * F.logsigmoid(-heat_Bhw)
    return -torch.where(target_Bhw == 1, centre, rest).sum() / there_BO.sum().clamp(min=1)
