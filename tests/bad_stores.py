# SPDX-License-Identifier: Apache-2.0
"""Fixtures: checkpoints of a toy run, on the disk and in a store that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy
from s3_server import BUCKET, S3Server, s3_server

from ahpa_scale import storage

if TYPE_CHECKING:  # every test module comes by here, and Composer takes its time
    from faulty_store import Outcome

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def whole() -> Outcome:
    """The run that nothing disturbs."""
    from faulty_store import WHOLE, run

    return run(WHOLE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Checkpoints after 2, 4 and 6 batches, and ``latest``."""
    from faulty_store import contents, saved

    folder = tmp_path_factory.mktemp("saved")
    saved(str(folder))
    return contents(folder)


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The store behind a proxy. Only our own attempts count: the client's are switched off."""
    import s3fs
    from tenacity import wait_fixed

    from ahpa_scale.storage import patience

    monkeypatch.setattr(patience, "PAUSES", wait_fixed(0.01))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with FaultProxy(server.endpoint) as running:
        environment = {
            **server.environment,
            "S3_ENDPOINT_URL": running.url,
            "AWS_MAX_ATTEMPTS": "1",
            # Far more than any test takes: where a store stays away, the test sets its own.
            storage.PATIENCE: "100",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A folder in the store that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on the disk and in the store."""
    if request.param == "local":
        return str(tmp_path / "checkpoints")
    request.getfixturevalue("proxy")
    return str(request.getfixturevalue("url"))
