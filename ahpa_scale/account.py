# SPDX-License-Identifier: Apache-2.0
"""Support for a user id without a name or a home folder, as in OpenShift's containers.

torch, matplotlib, Triton, wandb and the hub's client name their caches after the user, or keep them
in the home folder. Without these they fail, some only at the first batch. Standard library only.
"""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path

#: The variables that those libraries read first, and sub-folders for them.
_CACHES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_HOME": "",
    "WANDB_CONFIG_DIR": "wandb",
}


def settle_account() -> None:
    """Sets variables that replace a missing user name or home folder. Variables that are set
    already stay. Call it before those libraries are imported.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = f"uid-{os.getuid()}"
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    missing = [name for name in _CACHES if not os.environ.get(name)]
    room = _private_folder() if missing else None
    if room is not None:
        os.environ.update({name: str(room / _CACHES[name]) for name in missing})


def _private_folder() -> Path | None:
    """A cache folder that all processes of this user share. Nobody else may write there, because
    compiled code in it is run. None if no temporary folder can be written to.
    """
    try:
        room = Path(tempfile.gettempdir(), f"ahpa-scale-uid-{os.getuid()}")
        room.mkdir(mode=0o700, exist_ok=True)
        status = room.lstat()
        ours = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(status.st_mode) and ours:
            return room
        return Path(tempfile.mkdtemp(prefix="ahpa-scale-"))
    except OSError:
        return None
