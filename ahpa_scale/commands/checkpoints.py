# SPDX-License-Identifier: Apache-2.0
"""``ahpa-scale checkpoints``: look at a run's checkpoints, verify, copy, thin out and export them.

Only `export` needs torch; everything else answers at once.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Optional

import typer

from ahpa_scale import console, storage
from ahpa_scale.checkpoint import content, table
from ahpa_scale.checkpoint.find import StoredCheckpoint, some_checkpoints_at
from ahpa_scale.checkpoint.manifest import MANIFEST
from ahpa_scale.checkpoint.retention import Retention, remove_checkpoint
from ahpa_scale.commands import options
from ahpa_scale.commands.export import export
from ahpa_scale.commands.reading import moving, newest_of, stepping_over
from ahpa_scale.errors import UserError
from ahpa_scale.exits import FAILED
from ahpa_scale.unreachable import UnreachableError

app = typer.Typer(
    help="List, verify, copy, thin out and export a run's checkpoints.", no_args_is_help=True
)

Url = Annotated[
    str,
    typer.Argument(
        help="A run's save_folder or one checkpoint: local path, s3://, gs:// ...",
        callback=options.ANY,
    ),
]


@app.command()
def ls(
    url: Url,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with sizes in bytes.")
    ] = False,
) -> None:
    """List checkpoints, newest last; * marks the newest whole one, `best` the best one.

    Names and sizes of the files are compared with the manifest, not their content: `verify` does
    that. Exit code 2 if there is nothing.
    """
    checkpoints = some_checkpoints_at(url)
    newest = next(iter(newest_of(checkpoints)), None)
    if as_json:
        for checkpoint in checkpoints:
            console.tell(json.dumps(table.facts(checkpoint) | {"newest": checkpoint is newest}))
        return
    header, rows = table.rows_of(checkpoints, newest)
    console.tell(f"{header}  verdict by names and sizes")
    for row, checkpoint in zip(rows, checkpoints, strict=True):
        console.tell(f"{row}  {table.verdict(checkpoint, table.by_names_and_sizes(checkpoint))}")


@app.command()
def verify(url: Url, progress: options.Progress = True) -> None:
    """Read every byte of one or of all checkpoints and compare it with what was saved.

    Files in a store are copied to the temporary folder (TMPDIR), one after another. Exit code 0:
    nothing is damaged. Exit code 1: a checkpoint is damaged, or none is whole. Exit code 2: the
    input is wrong, or the store refuses. Exit code 75: the store does not answer.
    """
    checkpoints = some_checkpoints_at(url)
    header, rows = table.rows_of(checkpoints)
    console.tell(f"{header}  verdict")
    counts = {table.WHOLE: 0, table.DAMAGED: 0, table.HALF: 0}
    newest = None
    done = 0
    with moving("verifying", checkpoints, progress) as (moved, say):
        for row, checkpoint in zip(rows, checkpoints, strict=True):
            problems = content.damage(checkpoint, content.after(moved, done))
            done += table.bytes_to_read([checkpoint])
            if problems and checkpoint.problem is None and content.overtaken(checkpoint):
                say(f"{row}  removed or saved anew while it was read")
                continue
            say(f"{row}  {table.verdict(checkpoint, problems)}")
            counts[table.kind_of(checkpoint, problems)] += 1
            newest = newest if problems or checkpoint.begun else checkpoint
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    console.tell(f"{told}; newest whole one: {newest.name if newest else 'none'}")
    if counts[table.DAMAGED] or newest is None:
        raise typer.Exit(FAILED)


@app.command()
def pull(
    url: Url,
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="New or empty local folder.", callback=options.LOCAL),
    ],
    progress: options.Progress = True,
) -> None:
    """Copy a checkpoint, or the newest whole one of a folder, to a local folder, verified.

    The folder appears whole or not at all; one that holds something already is refused.
    """
    checkpoints = some_checkpoints_at(url)
    with (
        storage.atomic_folder(folder, marker=MANIFEST) as room,
        moving("copying", newest_of(checkpoints), progress) as (moved, _),
    ):
        chosen = content.newest_whole(
            checkpoints,
            lambda checkpoint: stepping_over(checkpoint, content.copy(checkpoint, room, moved)),
        )
    console.tell(f"{folder}: {chosen.url}, {table.shown_size(chosen)}, every byte as it was saved")


@app.command()
def prune(
    url: Annotated[str, typer.Argument(help="A run's save_folder.", callback=options.ANY)],
    keep: Annotated[int, typer.Option(help="How many of the newest checkpoints stay.")],
    every: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Checkpoints at multiples of this many batches stay too, such as 50000ba."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="First read the newest checkpoint to its end, or an older one if it is damaged.",
        ),
    ] = True,
    progress: options.Progress = True,
) -> None:
    """Remove old checkpoints, and old uploads that were cut short.

    The newest whole one stays, and so does what is newer: it may be an upload under way.
    """
    if keep < 1:
        raise UserError(f"keep is {keep}: give the number of checkpoints that stay, at least 1")
    batches = None if every is None else _batches(every)
    checkpoints = some_checkpoints_at(url)
    if checkpoints[-1].url.rstrip("/") == url.rstrip("/"):
        raise UserError(f"{url} is a checkpoint itself: name the folder that holds it")

    def look(checkpoint: StoredCheckpoint) -> list[str]:
        return content.damage(checkpoint, moved) if check else table.by_names_and_sizes(checkpoint)

    with moving("verifying", newest_of(checkpoints), progress and check) as (moved, _):
        newest = content.newest_whole(
            checkpoints, lambda checkpoint: stepping_over(checkpoint, look(checkpoint))
        )
    # Newer, damaged checkpoints must not count among those that are kept.
    going = Retention(keep, batches).to_remove(checkpoints[: checkpoints.index(newest) + 1])
    left = []
    for checkpoint in going:
        try:
            if not dry_run:
                remove_checkpoint(checkpoint)
        except FileNotFoundError:
            pass  # the run itself has removed it
        except UnreachableError:
            raise  # the others would fail too
        except OSError as error:
            left.append(f"{checkpoint.name} ({error})")
            continue
        action = "would remove" if dry_run else "removed"
        console.tell(f"{action} {checkpoint.name}, {table.shown_size(checkpoint)}")
    verb = "would go" if dry_run else "removed"
    gone = len(going) - len(left)
    console.tell(
        f"{url}: {gone} {verb}, {len(checkpoints) - gone} left, the newest whole is {newest.name}"
    )
    if left:
        raise UserError(f"not removed: {', '.join(left)}")


# The name that `ahpa-scale export` had before it wrote other formats.
app.command()(export)


def _batches(text: str) -> int:
    match = re.fullmatch(r"(\d+)(ba)?", text, re.ASCII)
    if match is None:
        raise UserError(f"every is {text!r}: give a number of batches, such as 50000ba")
    return int(match[1])
