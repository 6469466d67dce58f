# SPDX-License-Identifier: Apache-2.0
"""The command line, `ahpa-scale`. Heavy imports wait inside the commands, so help is immediate."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any, Optional

import typer

from ahpa_scale import checkpoint_cli, console, pictures_cli
from ahpa_scale.account import settle_account
from ahpa_scale.config import options
from ahpa_scale.disk_errors import mendable
from ahpa_scale.errors import UserError
from ahpa_scale.evaluate import cli as evaluate_cli
from ahpa_scale.leaving import leave_when_asked
from ahpa_scale.streams import make_lasting
from ahpa_scale.unreachable import TRY_AGAIN, UnreachableError

app = typer.Typer(
    name="ahpa-scale",
    help="Prepare data for training diffusion transformers, look at it, and start runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoint_cli.app, name="checkpoints")

Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda:0.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run made.")]
Progress = Annotated[bool, typer.Option(help="Show a progress bar.")]
Limit = Annotated[Optional[int], typer.Option(help="At most this many pictures.")]  # noqa: UP045


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="Folder of class sub-folders, or 'demo'.", callback=options.LOCAL),
    ],
    out: Annotated[
        str,
        typer.Option(help="Local folder, s3:// or gs:// URL to write.", callback=options.ANY),
    ],
    vae: Annotated[
        str, typer.Option(help="Diffusers folder, hub id, or 'demo'.", callback=options.VAE)
    ] = "demo",
    size: Annotated[int, typer.Option(help="Side of the cropped pictures, in pixels.")] = 256,
    grid: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens per side of stored maps (default: half the latent's side)."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="'latents', or 'images' for online encoding.")
    ] = "latents",
    scaling: Annotated[
        str, typer.Option(help="'config' (the VAE's factors) or 'channel' (measured).")
    ] = "config",
    level: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Encoder level to store; repeat for more (default: all)."),
    ] = None,
    prior_dtype: Annotated[str, typer.Option(help="'float16' or 'bfloat16'.")] = "float16",
    features: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Folder of .npy features of another encoder; 'oracle' for the demo.",
            callback=options.LOCAL,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per encoder call.")] = 64,
    limit: Limit = None,
    rejects: Annotated[
        float, typer.Option(help="Share of a folder's pictures that may be unreadable.")
    ] = 0.01,
    shuffle_seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Order of a folder's pictures (default: 0)."),
    ] = None,
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Demo only: easy, medium or hard (default: easy)."),
    ] = None,
    num_samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Demo only: how many pictures (default: 10000)."),
    ] = None,
    seed: Annotated[Optional[int], typer.Option(help="Demo only (default: 0).")] = None,  # noqa: UP045
    start: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Demo only: first index, for a second split (default: 0)."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    shard_size: Annotated[str, typer.Option(help="Bytes per shard, such as 64mb.")] = "64mb",
    parts: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Prepare one of this many parts; the last one to end joins them."),
    ] = None,
    part: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Which part, from 0."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads that read and crop pictures.")] = 4,
    progress: Progress = True,
) -> None:
    """Encode pictures once into shards of latents and encoder levels."""
    given = dict(locals())
    given["vae_path"] = given.pop("vae")
    given["levels"] = tuple(given.pop("level") or ()) or None
    count, index = given.pop("parts"), given.pop("part")
    from ahpa_scale.data.settings import PrepareSettings, chosen_part

    # Wrong options are refused before the slow imports.
    PrepareSettings(**given)
    chosen = chosen_part(index, count)
    if chosen is None:
        from ahpa_scale.data.prepare import prepare as prepare_all

        card = prepare_all(tell=_remark, **given)
    else:
        from ahpa_scale.data.parts import prepare_part

        found = prepare_part(part=chosen, tell=_remark, **given)
        if found is None:
            console.tell(
                f"{out}: part {chosen.index} of {chosen.count} is there; others are missing"
            )
            return
        card = found
    console.tell(
        f"{out}: {card.num_samples} pictures, {card.num_classes} classes, kind {card.kind}, "
        f"latent {'x'.join(map(str, card.latent_shape))}, grid {card.grid}, "
        f"{len(card.levels)} levels"
    )


@app.command()
def diagnose(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run's checkpoint or output folder, or a DiT's safetensors.",
            callback=options.ANY,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Prepared data set: local folder, s3:// or gs:// URL.", callback=options.DATA
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for the map and its figure.", callback=options.ANY)
    ] = "recoverability",
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="The run's config.yaml (default: beside the checkpoint or above it).",
            callback=options.LOCAL,
        ),
    ] = None,
    levels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Levels with commas, also latent, external, self.<block>."),
    ] = None,
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Levels of one source: vae, latent, external, self (default: all kept)."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="At most this many pictures.")] = 2048,
    bins: Annotated[int, typer.Option(help="Equal bins of the noise level.")] = 10,
    device: Device = "cpu",
    progress: Progress = True,
) -> None:
    """Map which levels a trained model shows, in which block, at which noise."""
    from ahpa_scale.config.diagnosis import Diagnosis

    names = tuple(name.strip() for name in (levels or "").split(",") if name.strip())
    # Wrong options are refused before the slow imports.
    wanted = Diagnosis(checkpoint, data, config, names, source, pictures, bins, device, progress)
    from ahpa_scale import diagnosis

    leave_when_asked()
    found = diagnosis.diagnose(wanted, out)
    console.tell(
        f"{out}: {', '.join(diagnosis.NAMES)}; {len(found.levels)} levels, "
        f"{len(found.blocks)} blocks, {found.bins} bins of t, {found.pictures} pictures"
    )


@app.command("train-vae")
def train_vae(
    out: Annotated[str, typer.Option(help="Diffusers folder to write.", callback=options.LOCAL)],
    source: Annotated[
        str,
        typer.Argument(help="Folder of class sub-folders, or 'demo'.", callback=options.LOCAL),
    ] = "demo",
    size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Folders only: side of the cropped pictures, in pixels."),
    ] = None,
    widths: Annotated[
        str, typer.Option(help="Encoder widths, one per resolution, fine to coarse.")
    ] = "32,64,96",
    latent_channels: Annotated[int, typer.Option(help="Channels of the latent.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    kl_weight: Annotated[float, typer.Option(help="Weight of the KL divergence.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Initialisation, order and noise.")] = 0,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    progress: Progress = True,
) -> None:
    """Train a small autoencoder, for pictures that no published one fits."""
    block_out_channels = _numbers(widths, "widths")
    if (source == "demo") != (size is None):
        raise UserError("give size with a folder, and only then")
    from ahpa_scale.data.sources import FolderSource
    from ahpa_scale.data.vae_training import VAETraining
    from ahpa_scale.data.vae_training import train_vae as train

    settings = VAETraining(
        block_out_channels=block_out_channels,
        latent_channels=latent_channels,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        kl_weight=kl_weight,
        seed=seed,
        device=device,
    )
    pictures = source if size is None else FolderSource(source, size=size)
    report = train(out, pictures, settings, overwrite=overwrite, progress=progress, tell=_remark)
    quality = ", ".join(f"{name} {value:.1f} dB" for name, value in report.psnr.items())
    console.tell(f"{out}: PSNR {quality}; scaling factor {report.scaling_factor:.5f}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def launch(
    script: Annotated[
        str, typer.Argument(help="The training script, train.py.", callback=options.LOCAL)
    ],
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Its arguments: a YAML file, then any number of key=value."),
    ] = None,
    nproc: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--nproc", "-n", help="Ranks on this node (default: the scheduler's)."),
    ] = None,
    nnodes: Annotated[Optional[int], typer.Option(help="Nodes, where no scheduler says.")] = None,  # noqa: UP045
    node_rank: Annotated[Optional[int], typer.Option(help="This node's number, from 0.")] = None,  # noqa: UP045
    master_addr: Annotated[Optional[str], typer.Option(help="Host of node 0.")] = None,  # noqa: UP045
    master_port: Annotated[Optional[int], typer.Option(help="TCP port on it.")] = None,  # noqa: UP045
    resolve_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for node 0's host to have an address.")
    ] = 300.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what it would do.")
    ] = False,
) -> None:
    """Start this node's ranks as the scheduler's variables say."""
    from ahpa_scale.config.folders import check_folders
    from ahpa_scale.launch import command, environment, flags
    from ahpa_scale.requests import listening

    with listening(preparing=True):
        given = (nnodes, node_rank, master_addr, master_port)
        if any(flag is not None for flag in given):
            placement = flags.from_flags(*given, nproc)
        else:
            placement = environment.from_environment(os.environ, nproc)
        words = arguments or []
        config = command.check_run(placement, script, words)
        chosen = command.command_for(placement, script, words)
        if not dry_run:
            check_folders(config)
            console.set_up(config.logging.format, rank=placement.rank, node=placement.node_rank)
        console.say(f"{placement.source}: {chosen}", stream=sys.stdout)
        if dry_run:
            return
        if placement.master_addr is not None:
            command.wait_for_address(placement.master_addr, resolve_timeout)
        chosen.run()


# In the order of the help.
app.command()(evaluate_cli.evaluate)
app.command("unpack-idx")(pictures_cli.unpack_idx)
app.command("demo-images")(pictures_cli.demo_images)


def _remark(text: str) -> None:
    typer.echo(text, err=True)


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{name} must be whole numbers with commas, not {text!r}") from None


def main(arguments: list[str] | None = None) -> Any:
    """Run a command. A user's mistake, and a disk or store that refuses, is one line on stderr and
    exit status 2, a hub that does not answer one line and 75, SIGTERM one line and 79. The rest
    shows its traceback.
    """
    if arguments is None:
        make_lasting()
        leave_when_asked()
    settle_account()
    try:
        return app(args=arguments)
    except (UserError, OSError) as error:
        code = TRY_AGAIN if isinstance(error, UnreachableError) else 2
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
