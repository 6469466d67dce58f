# SPDX-License-Identifier: Apache-2.0
"""Whether a run may use a checkpoint: run ids, and checks of the data it was trained on."""

from __future__ import annotations

import logging
from pathlib import Path

from composer.utils import dist

from ahpa_scale import storage
from ahpa_scale.checkpoint.errors import CheckpointError
from ahpa_scale.checkpoint.manifest import Manifest
from ahpa_scale.config.schema import Config, parse_time
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.data.identity import differences, model_differences, moved_class, told_classes
from ahpa_scale.log_files import going_on_without

#: File in output_dir with the id of the run that saved checkpoints from there.
RUN_ID = "run_id"
_LONGEST_ID = 1000
_SWITCH = "checkpoint.accept_other_data=true"
_log = logging.getLogger(__name__)


def noted_id(output_dir: str) -> str | None:
    """The id of the run that owns output_dir; None before its first save."""
    try:
        return storage.read_text(Path(output_dir) / RUN_ID, _LONGEST_ID).strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def note_id(output_dir: str, run_id: str) -> None:
    """Writes the run's id to output_dir. Called once a checkpoint has it."""
    path = Path(output_dir) / RUN_ID
    with going_on_without(path):
        if not path.exists() or noted_id(output_dir) != run_id:
            storage.write_text(path, f"{run_id}\n")


def check_same_data(config: Config, card: DatasetCard, url: str, manifest: Manifest) -> str | None:
    """Compares the run's data set with the one that its checkpoint was trained on.

    Returns:
        How they differ, if the run accepts that; None if they don't.

    Raises:
        CheckpointError: they differ, and the run does not accept that.
    """
    what = _other_data(config, card, manifest)
    if what is not None and not config.checkpoint.accept_other_data:
        raise CheckpointError(
            f"{url} was trained on other data than {_place(config)}: {what}; go on with those, or "
            f"set {_SWITCH} to go on with these from the beginning of a pass"
        )
    return what


def check_other_run(config: Config, card: DatasetCard, url: str, manifest: Manifest) -> None:
    """Compares the data set with that of another run's checkpoint. They may differ, but a class of
    both must have the same label in both.

    Raises:
        CheckpointError: a class has two labels, or nothing would be left to train.
    """
    value, unit = parse_time(config.max_duration)
    behind = {"ba": manifest.batch, "ep": manifest.epoch, "sp": manifest.num_images}.get(unit, 0)
    if behind >= value:
        raise CheckpointError(
            f"{url} has {behind}{unit} behind it, which count: max_duration={config.max_duration} "
            "leaves nothing to train; ask for more"
        )
    told = manifest.data_set
    if told is None:
        return
    moved = None if config.model.unconditional else moved_class(told_classes(told), card.classes)
    if moved is not None and not config.checkpoint.accept_other_data:
        raise CheckpointError(
            f"{url} was trained with its classes in another order than those of {_place(config)}: "
            f"{moved}; prepare the data in that order, or set {_SWITCH} to train the labels anew"
        )
    what = model_differences(told, card)
    if what is not None:
        warn(f"starting from a model of other data: {what}")


def _other_data(config: Config, card: DatasetCard, manifest: Manifest) -> str | None:
    if manifest.data_set is not None:
        return differences(manifest.data_set, card)
    # An older version saved it. Only a position behind the end of the data can be noticed.
    position = (manifest.data or {}).get("sample_in_epoch", 0)
    if position <= card.num_samples + config.global_train_batch_size:
        return None
    return f"number of pictures (over {position} then, {card.num_samples} now)"


def _place(config: Config) -> str:
    return ", ".join(config.data.places)


def warn(text: str) -> None:
    """Logs one warning for all ranks."""
    if dist.get_global_rank() == 0:
        _log.warning("checkpoints: %s", text)
