# SPDX-License-Identifier: Apache-2.0
"""What `ahpa-scale prepare` costs beside its stages alone: decoding, encoding, writing.

    python benchmarks/prepare.py                   # 10,000 pictures by two processes: minutes
    python benchmarks/prepare.py --pictures 500

Three figures: CPU seconds of two processes over those of the stages, one after the other; wall time
with an encoder ten times dearer than decoding, which only waits as for a GPU, over its waits alone;
and the peak memory of a process over that for a fifth of the pictures. What starting costs is
measured with a few pictures, and taken off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image
from streaming import MDSWriter

from ahpa_scale.data import codec, demo, making, shard_maker
from ahpa_scale.data import prepare as preparing
from ahpa_scale.data.card import SHARD_HASH
from ahpa_scale.data.codec_making import make_codec
from ahpa_scale.data.encode import BatchEncoder
from ahpa_scale.data.planning import open_all
from ahpa_scale.data.prepare import prepare
from ahpa_scale.data.settings import PrepareSettings

#: Sides of a stored picture and of the cropped one.
STORED, SIZE = 160, 32
_PROCESSES, _FEW = 2, 64


@dataclass(frozen=True)
class Cost:
    """What a command took: CPU seconds of all its processes, and the largest one's peak bytes."""

    cpu: float
    peak: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    number = parser.parse_args(arguments).pictures
    with tempfile.TemporaryDirectory() as room:
        folders = {count: Path(room, f"{count}") for count in (_FEW, number // 5, number)}
        for count, folder in folders.items():
            _save_pictures(folder, count)
        few, fifth, whole = (_command(folder, room) for folder in folders.values())
        stages = _stages(folders[number])
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        apart, together = sum(stages.values()), whole.cpu - few.cpu
        print(f"stages alone, CPU s: {told}; together {apart:.1f}")
        print(f"prepare with {_PROCESSES} processes: ratio {together / apart:.3f} (CPU seconds)")
        dear = _dear(folders[number // 5], stages["decode"] / number)
        print(f"a dear encoder: ratio {dear:.3f} (wall time)")
        print(f"peak memory: ratio {whole.peak / fifth.peak:.3f} ({whole.peak / 2**20:.0f} MiB)")


def _save_pictures(folder: Path, count: int) -> None:
    spec = demo.DemoSpec.preset("medium", size=STORED)
    for index in range(count):
        drawn = demo.render(spec, 0, index)
        path = folder / f"class {drawn.label}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(path, quality=90)


def _command(folder: Path, room: str) -> Cost:
    """The command's cost: a process of its own asks for that of its children."""
    words = ["prepare", str(folder), "--size", str(SIZE), "--out", f"{room}/set-{folder.name}"]
    words += ["--devices", f"cpu:{_PROCESSES}", "--no-progress"]
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'ahpa_scale', *sys.argv[1:]], check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    cpu, peak = done.stdout.split()[-2:]
    return Cost(float(cpu), int(peak))


def _settings(folder: Path) -> PrepareSettings:
    return PrepareSettings(source=str(folder), out="nowhere", vae_path="demo", size=SIZE)


def _stages(folder: Path) -> dict[str, float]:
    """CPU seconds of each stage over all pictures."""
    settings = _settings(folder)
    card, pictures, vae = open_all(settings)
    made = make_codec(settings, card, vae, pictures)
    card = made.on_card(card)
    encoder = BatchEncoder(settings, card, vae, made.codec)
    seconds = dict.fromkeys(("decode", "encode", "write"), 0.0)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = work()
        seconds[stage] += time.process_time() - begun
        return result

    with tempfile.TemporaryDirectory() as room:
        writer = MDSWriter(
            out=room, columns=codec.columns(card), hashes=[SHARD_HASH], size_limit="64mb"
        )
        for first in range(0, len(pictures), settings.batch_size):
            span = range(first, min(first + settings.batch_size, len(pictures)))
            batch = timed("decode", partial(list, map(pictures.read, span)))
            samples = timed("encode", partial(list, encoder.samples(batch)))
            timed("write", partial(list, map(writer.write, samples)))
        timed("write", writer.finish)
    return seconds


def _dear(folder: Path, decoding: float) -> float:
    """Wall time with an encoder that waits ten times as long as decoding a picture takes."""
    wait = 10 * decoding
    answers: dict[int, list[dict[str, Any]]] = {}
    waited = 0.0

    class Waiting(BatchEncoder):
        def samples(self, batch: list[Any]) -> Any:
            nonlocal waited
            if len(batch) not in answers:
                answers[len(batch)] = [*super().samples(batch)]
            begun = time.perf_counter()
            time.sleep(wait * len(batch))
            waited += time.perf_counter() - begun
            return iter(answers[len(batch)])

    taken = 0.0

    def timed_shards(*words: Any) -> Any:
        nonlocal taken
        begun = time.perf_counter()
        result = making.make_shards(*words)
        taken = time.perf_counter() - begun
        return result

    with (
        tempfile.TemporaryDirectory() as room,
        patch.object(shard_maker, "BatchEncoder", Waiting),
        patch.object(preparing, "make_shards", timed_shards),
    ):
        prepare(str(folder), f"{room}/set", vae_path="demo", size=SIZE, progress=False)
    return taken / waited


if __name__ == "__main__":
    main()
