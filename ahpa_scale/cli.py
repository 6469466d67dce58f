# SPDX-License-Identifier: Apache-2.0
"""The command line, `ahpa-scale`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import typer

from ahpa_scale import console
from ahpa_scale.account import settle_account
from ahpa_scale.commands import (
    checkpoints,
    compare,
    diagnose,
    export,
    init,
    launch,
    pictures,
    prepare,
    report,
    train_vae,
)
from ahpa_scale.commands.doctor import cli as doctor
from ahpa_scale.commands.evaluate import cli as evaluate
from ahpa_scale.commands.sample import cli as sample
from ahpa_scale.disk_errors import mendable
from ahpa_scale.errors import UserError
from ahpa_scale.exits import MISTAKE, TRY_AGAIN
from ahpa_scale.leaving import leave_when_asked
from ahpa_scale.streams import make_lasting
from ahpa_scale.unreachable import UnreachableError

app = typer.Typer(
    name="ahpa-scale",
    help="Prepare data for training diffusion transformers, look at it, and start runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoints.app, name="checkpoints")

# The help lists the commands in this order.
app.command()(init.init)
app.command()(doctor.doctor)
app.command()(prepare.prepare)
app.command()(diagnose.diagnose)
app.command("train-vae")(train_vae.train_vae)
_OF_THE_SCRIPT = {"ignore_unknown_options": True, "allow_interspersed_args": False}
app.command(context_settings=_OF_THE_SCRIPT)(launch.launch)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(report.report)
app.command()(export.export)
app.command("import")(export.bring)
app.command("unpack-idx")(pictures.unpack_idx)
app.command("demo-images")(pictures.demo_images)


def main(arguments: list[str] | None = None) -> Any:
    """Run a command. It prints one line on stderr and exits with 2 for a user's mistake or a disk
    or store that refuses, with 75 for a service that does not answer, and with 79 for SIGTERM.
    Other errors show their traceback.
    """
    if arguments is None:
        make_lasting()
        leave_when_asked()
    settle_account()
    try:
        return app(args=arguments)
    except (UserError, OSError) as error:
        code = TRY_AGAIN if isinstance(error, UnreachableError) else MISTAKE
        ours = isinstance(error, UserError | UnreachableError)
        text = str(error) if ours else mendable(error)
        if text is None:
            raise
        # A user can do nothing with a traceback; a message of several lines hides its point.
        line = f"error: {' '.join(text.split())}"
        console.say(line, level=logging.ERROR, fields={"exit_code": code})
        sys.exit(code)


if __name__ == "__main__":
    main()
