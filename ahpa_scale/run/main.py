# SPDX-License-Identifier: Apache-2.0
"""The entry point of training: first all cheap checks, then build, run and close."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ahpa_scale import console, storage
from ahpa_scale.account import settle_account
from ahpa_scale.checkpoint.errors import CheckpointError, StoreAwayError
from ahpa_scale.checkpoint.find import holds_checkpoints
from ahpa_scale.checkpoint.lease import Lease, holding
from ahpa_scale.config.checks.data import check_data, check_placeholders, read_data_card
from ahpa_scale.config.checks.folders import check_folders
from ahpa_scale.config.checks.held_out import check_held_out, check_reference
from ahpa_scale.config.checks.static import fit_to_data
from ahpa_scale.config.errors import (
    ConfigError,
    config_error,
    exit_on_user_error,
    leave,
    speaks_for_all_ranks,
)
from ahpa_scale.config.load import load_config, to_yaml
from ahpa_scale.config.schema import Config, parse_duration
from ahpa_scale.config.targets import Targets
from ahpa_scale.config.yaml_file import read_yaml
from ahpa_scale.data.card import DatasetCard
from ahpa_scale.ending import (
    CLOSING,
    ERROR,
    PATIENCE,
    WayOut,
    end_children,
    end_within,
    ended_unless_done,
    one_way_out,
)
from ahpa_scale.exits import NOT_SAVED, PREEMPTED, TRY_AGAIN, RunStoppedError
from ahpa_scale.log_files import going_on_without
from ahpa_scale.preemption import Requests, hear_signals, listening, looking
from ahpa_scale.run.history import History
from ahpa_scale.run.serve import serve_metrics, set_up_console
from ahpa_scale.run.watch import watch_ranks
from ahpa_scale.run_files import CONFIG_FILE
from ahpa_scale.unreachable import UnreachableError
from ahpa_scale.watch import Pulse, is_lost_connection
from ahpa_scale.watch.place import number_in

if TYPE_CHECKING:
    from composer import Trainer


def main(argv: Sequence[str], requests: Requests | None = None) -> None:
    """Trains one run.

    Args:
        argv: a YAML file, then any number of ``key=value``.
        requests: requests to this process, if somebody listens for them already.

    Raises:
        SystemExit: with code 2 and one line on stderr, if the input is wrong. Nothing has been
            downloaded, overwritten or trained by then.

    The process ends with code 70, 74, 75, 76 or 79 and one line if the run stopped itself or was
    asked to, see `ahpa_scale.exits`; with 1 after the traceback of any other error. If another rank
    died or hangs, the watch ends this process with code 75 and one line.
    """
    settle_account()
    if "GROUP_RANK" in os.environ:  # torchrun's name, which Composer doesn't know
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])
    hearing = nullcontext(requests) if requests else listening(preparing=True)
    with hearing as asked, one_way_out() as way_out, ExitStack() as stack:
        _run(argv, asked, way_out, stack)


def _run(argv: Sequence[str], requests: Requests, way_out: WayOut, stack: ExitStack) -> None:
    with exit_on_user_error():
        config = load_config(argv)
        set_up_console(config)
        check_output(config)  # first, because a trial write changes a folder's time
        if os.environ.get("LOCAL_RANK", "0") == "0":
            check_folders(config)
        card = read_data_card(config)
        config = fit_to_data(config, card)
        targets = check_data(config, card)
        _say_pooled(card, targets)
        held_out = check_held_out(config, card, _say_once)
        check_reference(config)
        pulse = stack.enter_context(watch_ranks(config)) or Pulse()
        board = stack.enter_context(serve_metrics(config, pulse))
        lease = stack.enter_context(hold_save_folder(config, requests))
        stack.enter_context(way_out.told_first(lambda error: _waits_for_word(config, error)))
        # Innermost: an error is noted before a launcher, or the watch, can end this process.
        history = stack.enter_context(History(config, lambda error: _waits_for_word(config, error)))
        # Imported late: torch, Composer and diffusers take seconds.
        from composer.utils import dist

        from ahpa_scale.callbacks import Heartbeat
        from ahpa_scale.run.build import build_trainer

        hear_signals()  # Composer's import has replaced the handlers
        listen_for(config, requests, stack)
        trainer = build_trainer(
            config,
            card,
            targets,
            [Heartbeat(pulse)],
            alive=pulse.saves,
            requests=requests,
            board=board,
            held_out=held_out,
        )
        if lease is not None:
            lease.confirm()
    if speaks_for_all_ranks():
        resolved = Path(config.output_dir) / CONFIG_FILE
        with going_on_without(resolved):
            storage.write_text(resolved, to_yaml(config))
    history.begin(trainer)
    dist.barrier()  # no rank leaves on its own while another one trains
    requests.preparing, way_out.training = False, True
    with exit_on_user_error(shared=False):
        _train(config, trainer, requests)


def _say_pooled(card: DatasetCard, targets: Targets) -> None:
    """Says that levels are mean-pooled, as all were before there were codecs."""
    if card.codec is None and set(targets.levels) & set(card.level_names):
        _say_once(
            "the data set's levels are mean-pooled, and so are the targets; prepare it with "
            "--codec residual for levels that keep their detail"
        )


def _say_once(text: str) -> None:
    if speaks_for_all_ranks():
        console.say(text)


def _train(config: Config, trainer: Trainer, requests: Requests) -> None:
    from composer.utils import dist

    end: tuple[str, int] | None = None
    try:
        if _finished(trainer):
            _say_finished(trainer)
        else:
            trainer.fit()
    except RunStoppedError as stop:
        end = (str(stop), stop.exit_code)
    except StoreAwayError as error:
        end = (str(error), TRY_AGAIN)
    except CheckpointError as error:
        end = (str(error), NOT_SAVED)
    if end is None and requests.leaving:
        batch = trainer.state.timestamp.batch.value
        end = (_farewell(config, batch, requests.leave), PREEMPTED)
    if end is not None:
        _last_upload(trainer)
        end_within(PATIENCE, end[1])  # trackers may have lost their connection
        trainer.close()
    else:
        with ended_unless_done(CLOSING, ERROR):
            trainer.close()
    end_children()
    if end is not None:
        dist.barrier()  # no rank leaves before all are here
        requests.heeded = True
        leave(*end)


def _last_upload(trainer: Trainer) -> None:
    """Waits for a checkpoint that is being uploaded."""
    from ahpa_scale.checkpoint.saver import Saver

    for callback in trainer.state.callbacks:
        if isinstance(callback, Saver):
            callback.wait()


def _waits_for_word(config: Config, error: BaseException) -> float:
    """Seconds for the watch to name the rank that ended first, if a connection was lost."""
    watched = config.watch.enabled and number_in(os.environ, "WORLD_SIZE", 1) > 1
    return config.watch.silence if watched and is_lost_connection(error) else 0.0


def _finished(trainer: Trainer) -> bool:
    """Whether the loaded checkpoint is the last one. A job may be started again after its end, and
    Composer would then raise an error.
    """
    return bool(trainer.state.timestamp >= trainer.state.max_duration)


def _say_finished(trainer: Trainer) -> None:
    if speaks_for_all_ranks():
        batch = trainer.state.timestamp.batch.value
        text = f"nothing left to train: {batch} batches are max_duration"
        console.say(text, stream=sys.stdout, fields={"batch": batch})


def listen_for(config: Config, requests: Requests, stack: ExitStack) -> None:
    """Sets the grace time. Rank 0 looks for switch files while the stack is open."""
    grace = config.checkpoint.grace
    requests.grace = None if grace is None else parse_duration(grace)
    if speaks_for_all_ranks():
        stack.enter_context(looking(requests, config.checkpoint.save_folder))


def _farewell(config: Config, batch: int, why: str | None) -> str:
    text = f"asked to leave by {why or 'another rank'}: stopped after batch {batch}"
    if config.checkpoint.save_folder is None:
        return f"{text}; nothing was saved, for want of checkpoint.save_folder"
    return f"{text}, which is saved; checkpoint.autoresume=true goes on from there"


def hold_save_folder(config: Config, requests: Requests) -> AbstractContextManager[Lease | None]:
    """A context in which no other run saves to this run's folder. Rank 0 holds it for all.

    Raises:
        CheckpointError: on entering, if a live run holds the folder.
    """
    folder = config.checkpoint.save_folder
    if folder is None or not speaks_for_all_ranks():
        return nullcontext()
    return holding(folder, config.run_name, leaves=lambda: requests.leave is not None)


def check_output(config: Config) -> None:
    """Refuses to overwrite another run.

    Raises:
        ConfigError: output_dir or checkpoint.save_folder holds a run, and this run does not go
            on with it. A run that only starts from a checkpoint (load_path) is another run.
            `run.checkpoints` checks whose checkpoints autoresume finds.
    """
    if config.checkpoint.autoresume:
        other = _run_at(Path(config.output_dir))
        if other not in (None, config.run_name):
            problem = f"{config.output_dir} holds the run {other!r}; give {config.run_name!r} "
            raise config_error(config, "output_dir", f"{problem}a folder of its own")
        return
    check_placeholders(config)
    places: dict[str, tuple[str | None, Callable[[str], bool]]] = {
        "output_dir": (config.output_dir, lambda folder: storage.exists(Path(folder, CONFIG_FILE))),
        "checkpoint.save_folder": (config.checkpoint.save_folder, holds_checkpoints),
    }
    for key, (folder, holds_run) in places.items():
        if folder is not None and _asked(config, key, folder, holds_run):
            raise config_error(
                config,
                key,
                f"{folder} holds a run already; set checkpoint.autoresume=true to go on with it, "
                "or give another run_name or folder",
            )


def _asked(config: Config, key: str, folder: str, question: Callable[[str], bool]) -> bool:
    try:
        return question(folder)
    except UnreachableError:
        raise
    except storage.RefusedError as error:
        raise config_error(config, key, f"{error}; check its name and the credentials") from None
    except OSError as error:
        raise config_error(config, key, f"{error}; name another place") from None


def _run_at(folder: Path) -> str | None:
    """The name of the run whose output lies there; None if there is none, or a variable sets it."""
    try:
        name = read_yaml(folder / CONFIG_FILE)[0].get("run_name")
    except ConfigError:
        return None
    return name if isinstance(name, str) and "${" not in name else None
