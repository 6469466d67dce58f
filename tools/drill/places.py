# SPDX-License-Identifier: Apache-2.0
"""Things that all cases share: a data set, a store server on loopback, and an undisturbed run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tools.drill.jobs import BIN, PATIENCE, ROOT, job, losses

# The servers are the tests'.
sys.path.insert(0, str(ROOT / "tests"))
from s3_server import BUCKET, S3Server, s3_server

#: Batches of the undisturbed run; no compared run trains longer.
REFERENCE = 400


@dataclass
class Places:
    """The shared things of one drill; each is made when it is first asked for.

    Attributes:
        root: folder of the drill.
        stack: closes what was opened.
    """

    root: Path
    stack: ExitStack
    bucket: str = field(default=BUCKET)

    @cached_property
    def data(self) -> Path:
        """A data set of several shards."""
        out = self.root / "data"
        command = [
            str(BIN / "ahpa-scale"),
            "prepare",
            "demo",
            "--size",
            "32",
            "--num-samples",
            "512",
        ]
        command += ["--shard-size", "100kb", "--out", str(out), "--no-progress"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return out

    def copy_data(self, target: Path) -> None:
        """Copies the data set, for a case that damages it."""
        shutil.copytree(self.data, target)

    @cached_property
    def server(self) -> S3Server:
        """A store on loopback."""
        folder = self.root / "store"
        folder.mkdir()
        return self.stack.enter_context(s3_server(folder))

    @cached_property
    def environment(self) -> dict[str, str]:
        """Environment variables with which jobs find the store."""
        return self.server.environment

    @cached_property
    def reference(self) -> dict[int, float]:
        """The losses of a run that nothing disturbs."""
        words = [f"data.local={self.data}", f"max_duration={REFERENCE}ba"]
        with job(self.root / "reference", *words) as running:
            code = running.ends(4 * PATIENCE)
            if code != 0:
                raise RuntimeError(f"the undisturbed run ended with {code}: {running.log[-2000:]}")
        return losses(self.root / "reference")

    def upload_data(self, prefix: str) -> None:
        """Uploads the data set to the store."""
        client = self.server.client()
        for path in self.data.rglob("*"):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(self.data)}"
                client.upload_file(str(path), self.bucket, key)


@contextmanager
def places(root: Path) -> Iterator[Places]:
    """The places of one drill, in a new folder."""
    with ExitStack() as stack:
        yield Places(root, stack)
