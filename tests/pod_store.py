# SPDX-License-Identifier: Apache-2.0
"""An S3 server in a container, for pods: a machine of its own on their network."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from image import Image
from job import BIN
from podman import podman

KEY, SECRET, REGION = "planted-pods-key-90d3", "planted-pods-secret-5e2b", "us-east-1"
_PORT = 8333


class Store:
    """SeaweedFS, with the bucket of the CPU overlay.

    Args:
        name: of the container.
        image: whose base the server runs on.
        network: on which it is called `store`.
    """

    bucket = "ahpa-demo"

    def __init__(self, name: str, image: Image, network: str) -> None:
        self.name, self.network = name, network
        flags = ["--name", name, "--network", network, "--network-alias", "store", "--user", "0"]
        flags += ["--volume", f"{BIN / 'weed'}:/weed:ro", "--entrypoint", "/weed"]
        flags += ["--env", f"AWS_ACCESS_KEY_ID={KEY}", "--env", f"AWS_SECRET_ACCESS_KEY={SECRET}"]
        words = ["mini", "-dir=/tmp", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", f"-s3.port={_PORT}"]
        podman("run", "--detach", *flags, image.train, *words)
        inside = json.loads(podman("inspect", "--format", "{{json .NetworkSettings}}", name))
        address = inside["Networks"][network]["IPAddress"]
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{address}:{_PORT}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}),
        )
        self._wait()

    @property
    def credentials(self) -> dict[str, str]:
        """The Secret `ahpa-scale-credentials`, as the pods read it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "S3_ENDPOINT_URL": f"http://store:{_PORT}",
        }

    def batches(self) -> list[int]:
        """Of the checkpoints that are whole: those with a manifest."""
        names = (re.search(r"/ba(\d+)/manifest\.json$", key) for key in self._keys())
        return sorted(int(found[1]) for found in names if found)

    def forget_checkpoints(self) -> None:
        """Empties the overlay's folder of checkpoints."""
        for key in self._keys():
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def close(self) -> None:
        """Ends the server."""
        podman("rm", "--force", "--time", "0", self.name, check=False)

    def _keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix="checkpoints/")
        return [item["Key"] for item in found.get("Contents", ())]

    def _wait(self, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._try()
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise RuntimeError(podman("logs", self.name, both=True)[-2000:]) from None
                time.sleep(0.3)

    def _try(self) -> None:
        with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket=self.bucket)
        # The first write waits for a volume, which comes a moment after the port.
        thing: dict[str, Any] = {"Bucket": self.bucket, "Key": "ready"}
        self.client.put_object(**thing, Body=b"1")
        self.client.delete_object(**thing)
