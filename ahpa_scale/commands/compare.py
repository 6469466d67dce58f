# SPDX-License-Identifier: Apache-2.0
"""The command `ahpa-scale compare`. Heavy imports are inside its functions."""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahpa_scale import console, storage
from ahpa_scale.commands import options

if TYPE_CHECKING:
    from ahpa_scale.config.comparison import Comparison
    from ahpa_scale.evaluation.measures import Measure
    from ahpa_scale.evaluation.networks import Network
    from ahpa_scale.evaluation.picture_sets import PictureSet

_KINDS = "folder, .npz of pictures or statistics, or whatever `prepare` reads"


def compare(
    made: Annotated[
        str, typer.Argument(help=f"Pictures to judge: {_KINDS}.", callback=options.SOURCE)
    ],
    reference: Annotated[
        options.Text,
        typer.Argument(
            help="Pictures to compare with, likewise.", callback=options.SOURCE, show_default=False
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Networks, such as inception,efficientnet-lite0, or a name of timm, with =FILE "
            "for weights of its own."
        ),
    ] = "inception",
    inception: Annotated[
        options.Text,
        typer.Option(
            help="Inception's weights: the library's own file, or .safetensors.",
            show_default="fetched",
            callback=options.LOCAL,
        ),
    ] = None,
    size: Annotated[
        options.Number,
        typer.Option(
            help="Side that picture files are cropped to.", show_default="the smallest of both sets"
        ),
    ] = None,
    out: Annotated[
        options.Text, typer.Option(help="JSON file to write.", callback=options.ANY)
    ] = None,
    save_statistics: Annotated[
        options.Text,
        typer.Option(
            help="Write the statistics of the set that is named last to this .npz, to compare with "
            "it next time.",
            callback=options.ANY,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per forward pass.")] = 64,
    device: options.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """FID and other measures of two sets of pictures, or the statistics of one, without any
    checkpoint.
    """
    given = dict(locals())
    from ahpa_scale.config.comparison import Comparison

    wanted = Comparison(**given)  # wrong options are refused before the slow imports
    _compare(wanted)


def _compare(wanted: Comparison) -> None:
    import torch

    from ahpa_scale.data.planning import check_device
    from ahpa_scale.evaluation.feature_sets import GROUPS
    from ahpa_scale.evaluation.measures import as_row
    from ahpa_scale.evaluation.measures import compare as compared
    from ahpa_scale.evaluation.networks import open_network
    from ahpa_scale.evaluation.picture_sets import (
        features_of,
        in_one_size,
        open_pictures,
        write_statistics,
    )

    check_device(wanted.device)
    device = torch.device(wanted.device)
    with tempfile.TemporaryDirectory(prefix="ahpa-scale-") as room:
        places = [wanted.made] if wanted.reference is None else [wanted.made, wanted.reference]
        sets = [open_pictures(each, room, wanted.size) for each in places]
        sets = sets if wanted.size is not None else in_one_size(sets)
        networks = [open_network(n.name, device, n.weights, n.side) for n in wanted.networks]
        all_groups = (GROUPS, 1) if len(sets) > 1 else (1,)
        found = [
            features_of(each, networks, wanted.batch_size, groups=groups, shown=wanted.progress)
            for each, groups in zip(sets, all_groups, strict=True)
        ]
    measures = []
    for made, *real in zip(*found, strict=True):
        measures += compared(made, real[0], device) if real else []
    for line in _lines(measures, sets):
        console.tell(line)
    if wanted.save_statistics is not None:
        write_statistics(wanted.save_statistics, found[-1][0])
    if wanted.out is not None:
        told = _told(sets, networks) | as_row(measures)
        storage.write_text(wanted.out, json.dumps(told, indent=2) + "\n")


def _lines(measures: list[Measure], sets: list[PictureSet]) -> list[str]:
    from ahpa_scale.commands.evaluate.table import reasons, shown_value

    left_out = [
        f"{each.place}: {len(each.rejects)} of {each.num_pictures} pictures cannot be read and are "
        "left out"
        for each in sets
        if len(each.rejects)
    ]
    width = max((len(measure.title) for measure in measures), default=0)
    values = [f"{measure.title.ljust(width)}  {shown_value(measure)}" for measure in measures]
    return [*left_out, *reasons(measures), *values]


def _told(sets: list[PictureSet], networks: list[Network]) -> dict[str, Any]:
    """All that the measures depend on."""
    made, reference = (
        {
            "place": each.place,
            "digest": each.digest,
            "pictures": each.num_pictures,
            "side": each.side,
        }
        for each in sets
    )
    facts = [dict(network.facts) for network in networks]
    return {"made": made, "reference": reference, "networks": facts}
