# SPDX-License-Identifier: Apache-2.0
"""A real server of Azure's blob store (Azurite) on loopback, for tests.

`with azure_server(folder) as server: ...`
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job import ROOT
from s3_server import free_ports

CONTAINER = "box"
#: The account that every Azurite has: Microsoft publishes its key.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_INSTALLED = ROOT / ".cache/azurite/node_modules/.bin/azurite-blob"


@dataclass(frozen=True)
class AzureServer:
    """A running server with one empty container."""

    endpoint: str

    def environment(self, endpoint: str | None = None, key: str = KEY) -> dict[str, str]:
        """Variables under which adlfs finds the server, or a proxy before it."""
        place = f"BlobEndpoint={endpoint or self.endpoint}/{ACCOUNT};"
        account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
        return {"AZURE_STORAGE_CONNECTION_STRING": account + place}

    def names(self) -> list[str]:
        """Names of the container's blobs."""
        return sorted(blob.name for blob in _client(self).list_blobs())


def program() -> str | None:
    """Azurite's blob server, if it is installed."""
    return str(_INSTALLED) if _INSTALLED.exists() else shutil.which("azurite-blob")


def missing() -> str | None:
    """Why there is no server; None if there is one."""
    return None if program() else "not installed: Azurite (tools/get_azurite.sh)"


@contextmanager
def azure_server(folder: Path) -> Iterator[AzureServer]:
    """Start a server that keeps its data in `folder`; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(program()), "--blobHost", "127.0.0.1", "--blobPort", str(free_ports(1)[0])]
    command += ["--location", str(folder), "--disableTelemetry", "--skipApiVersionCheck"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        told = ""
        while "successfully listens" not in told:
            line = process.stdout.readline()
            assert line, f"no Azure server: {told}"
            told += line
        server = AzureServer(f"http://127.0.0.1:{command[4]}")
        _client(server).create_container()
        yield server
    finally:
        process.kill()
        process.communicate()


def _client(server: AzureServer):
    from azure.storage.blob import ContainerClient

    told = server.environment()["AZURE_STORAGE_CONNECTION_STRING"]
    return ContainerClient.from_connection_string(told, CONTAINER)
