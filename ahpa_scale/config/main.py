# SPDX-License-Identifier: Apache-2.0
"""The entry point of training: check everything cheap first, then build, run and close."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ahpa_scale import storage
from ahpa_scale.checkpoint.resume import find_latest
from ahpa_scale.config.card import check_data, read_data_card
from ahpa_scale.config.checks import config_error
from ahpa_scale.config.errors import exit_on_user_error, leave, speaks_for_all_ranks
from ahpa_scale.config.load import load_config, to_yaml
from ahpa_scale.config.schema import Config
from ahpa_scale.config.watch import watch_ranks
from ahpa_scale.stops import ROLL_BACK, STOPPED, RunStoppedError

RESOLVED = "config.yaml"


def main(argv: Sequence[str]) -> None:
    """Trains one run.

    Args:
        argv: a YAML file, then any number of ``key=value``.

    Raises:
        SystemExit: with code 2 and one line on stderr, for anything wrong with the input; nothing
            has been downloaded, overwritten or trained by then. With code 70 or 76 and one line
            where the run stopped itself, see `ahpa_scale.stops`. Where another rank died or hangs,
            the watch ends this process with code 75 and one line.
    """
    with _leaving_promptly(), ExitStack() as stack:
        with exit_on_user_error():
            config = load_config(argv)
            card = read_data_card(config)
            check_data(config, card)
            check_output(config)
            pulse = stack.enter_context(watch_ranks(config))
            # Only now the seconds that torch, Composer and diffusers take to import.
            from composer.utils import dist

            from ahpa_scale.callbacks import Heartbeat
            from ahpa_scale.config.build import build_trainer

            marks = [] if pulse is None else [Heartbeat(pulse)]
            trainer = build_trainer(config, card, callbacks=marks)
        if speaks_for_all_ranks():
            storage.write_text(Path(config.output_dir) / RESOLVED, to_yaml(config))
        try:
            trainer.fit()
        except RunStoppedError as stop:
            trainer.close()  # uploads of checkpoints come to their end
            dist.barrier()  # on every rank, before the first one leaves
            leave(str(stop), stop.exit_code)
        trainer.close()


@contextmanager
def _leaving_promptly() -> Iterator[None]:
    """A run that stopped itself leaves without Python's slow farewell: launchers end all ranks when
    one is gone, and would report what they did to a rank that lingers, and not its exit code.
    """
    try:
        yield
    except SystemExit as end:
        if end.code in (STOPPED, ROLL_BACK):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


def check_output(config: Config) -> None:
    """Refuses to write over another run.

    Raises:
        ConfigError: output_dir or checkpoint.save_folder holds a run, and this one does not go
            on with it. A run that only starts from a checkpoint (load_path) is another run.
    """
    if config.checkpoint.autoresume:
        return
    save_folder = config.checkpoint.save_folder
    places = {
        "output_dir": (config.output_dir, storage.exists(Path(config.output_dir) / RESOLVED)),
        "checkpoint.save_folder": (save_folder, save_folder and find_latest(save_folder)),
    }
    for key, (folder, taken) in places.items():
        if taken:
            raise config_error(
                config,
                key,
                f"{folder} holds a run already; set checkpoint.autoresume=true to go on with it, "
                "or give another run_name or folder",
            )
