# SPDX-License-Identifier: Apache-2.0
"""The command `ahpa-scale report`. Heavy imports are inside it."""

from __future__ import annotations

from typing import Annotated

import typer

from ahpa_scale import console
from ahpa_scale.commands import options
from ahpa_scale.errors import UserError


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="A run's output_dir, its checkpoints, or what evaluate wrote: local path or URL.",
            callback=options.ANY_OF_SEVERAL,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="HTML file to write: local path or URL.", callback=options.ANY)
    ] = "report.html",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    progress: options.Progress = True,
) -> None:
    """Write one HTML page about runs: curves, samples, evaluation, settings, ends and restarts.

    The page needs no network. Several runs are overlaid; the first is what the others are compared
    with. A folder that holds evaluation.jsonl alone joins the run that it is of.
    """
    import time

    from ahpa_scale import storage
    from ahpa_scale.progress import progress_bar
    from ahpa_scale.report.page import page_of
    from ahpa_scale.report.runs import joined, listing, read_run, row_bytes
    from ahpa_scale.writable import try_to_write

    if len(set(runs)) < len(runs):
        raise UserError("a run is named twice: name each once")
    if storage.exists(out) and not overwrite:
        raise UserError(f"{out} exists already; choose another name, or --overwrite it")
    folder, slash, _ = out.rpartition("/")
    try_to_write(folder + slash if slash else ".")
    found = {url: listing(url) for url in runs}
    mega = 1_000_000
    total = sum(map(row_bytes, found.values()))
    read, done = [], 0
    shown = progress and total >= _LONG
    with progress_bar(total=total // mega, unit="MB", desc="reading", shown=shown) as bar:
        for url, sizes in found.items():

            def moved(bytes_read: int, before: int = done) -> None:
                bar.update((before + bytes_read) // mega - bar.n)

            read.append(read_run(url, sizes, moved))
            done += row_bytes(sizes)
    page = page_of(joined(read), time.time())
    storage.write_text(out, page)
    names = "run" if len(found) == 1 else "runs"
    console.tell(f"{out}: {len(found)} {names}, {len(page) / mega:.1f} MB")


#: From this many bytes on, a progress bar is shown.
_LONG = 32_000_000
