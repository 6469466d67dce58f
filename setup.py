# SPDX-License-Identifier: Apache-2.0
"""Adds the files that `ahpa-scale init` writes to the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("train.py", "yamls", "k8s", "tools/k8s_settings.py")


class BuildPy(build_py):
    """Copies those files of the checkout into the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # an editable install has the checkout itself
        room = Path(self.build_lib, "ahpa_scale", "shipped")
        for name in SHIPPED:
            target = room / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                shutil.copytree(name, target, dirs_exist_ok=True)
            else:
                shutil.copy2(name, target)


setup(cmdclass={"build_py": BuildPy})
