# SPDX-License-Identifier: Apache-2.0
"""Writes k8s/settings.env, and the runs' YAMLs, into the manifests. Standard library only.

    python tools/k8s_settings.py [--check] [FOLDER]

A manifest line that ends in `# setting: TEMPLATE` gets TEMPLATE as its value, with ${NAME} filled
in. So the manifests stay plain YAML without a template engine, and every change is a diff.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[1]
_LINE = re.compile(r"(\s*(?:- )*(?:[\w./-]+: )?)(\S+) # setting: (\S+)")
_NAME = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
# No character that has a meaning for YAML inside a plain scalar.
_VALUE = re.compile(r"[\w.:/@+=-]+", re.ASCII)
#: The run of the CPU overlay, whatever run the user has set.
_CPU_RUN = "demo-ahpa"
_CONFIG = """\
# Written by make k8s from {source}: change that one.
apiVersion: v1
kind: ConfigMap
metadata:
  name: ahpa-scale-config
  namespace: ahpa-scale
{labels}data:
{replace}  {name}.yaml: |
{text}"""
_LABELS = "  labels:\n    app.kubernetes.io/part-of: ahpa-scale\n"


class SettingsError(ValueError):
    """A setting that can't be used; one line."""


def read_settings(path: Path) -> dict[str, str]:
    """Reads settings.env and adds the settings that follow from it.

    Raises:
        SettingsError: a line is no setting, a name is given twice, or a number is not a number.
    """
    settings: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        if not (equals and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise SettingsError(f"{path.name}:{number}: {line!r} is not NAME=VALUE")
        if name in settings:
            raise SettingsError(f"{path.name}:{number}: {name} is given twice")
        settings[name] = value
    for name in ("NODES", "GPUS"):
        if not re.fullmatch(r"[1-9][0-9]*", settings.get(name, "")):
            raise SettingsError(f"{path.name}: {name} must be a whole number from 1")
    # With one node the disruption budget would be 0; with 1 it protects the only pod.
    settings["NODES_BUT_ONE"] = str(max(1, int(settings["NODES"]) - 1))
    # If all pods report an error, such as a last checkpoint that can't be written, each one counts.
    settings["RETRIES"] = str(2 * int(settings["NODES"]))
    return settings


def filled(text: str, settings: dict[str, str], where: str) -> str:
    """The manifest with the settings in its marked lines.

    Raises:
        SettingsError: a marked line can't be read, or its mark has a name that isn't set.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if "# setting:" in line and not line.lstrip().startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise SettingsError(f"{where}:{number}: can't read the setting of {line.strip()!r}")
            before, old, template = match.groups()
            try:
                value = Template(template).substitute(settings)
            except KeyError as error:
                raise SettingsError(f"{where}:{number}: {error.args[0]} is not set") from None
            quote = '"' if old.startswith('"') else ""
            line = f"{before}{quote}{value}{quote} # setting: {template}"
        lines.append(line + "\n")
    return "".join(lines)


def config_map(run: str, folder: Path, patch: bool = False) -> str:
    """The ConfigMap that holds yamls/<run>.yaml, or the patch that replaces another run's.

    Raises:
        SettingsError: there is no such file.
    """
    path = folder / f"{run}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise SettingsError(f"RUN={run}: no yamls/{run}.yaml; there are {known}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return _CONFIG.format(
        source=f"yamls/{run}.yaml",
        labels="" if patch else _LABELS,
        replace="  $patch: replace\n" if patch else "",
        name=run,
        text="".join(f"    {line}\n" if line else "\n" for line in lines),
    )


def changes(k8s: Path, yamls: Path) -> dict[Path, str]:
    """New content by file of `k8s`, for the files whose content differs."""
    settings = read_settings(k8s / "settings.env")
    wanted = {
        k8s / "base/20-config.yaml": config_map(settings.get("RUN", ""), yamls),
        k8s / "overlays/cpu/config.yaml": config_map(_CPU_RUN, yamls, patch=True),
    }
    for path in sorted(k8s.rglob("*.yaml")):
        if path not in wanted and not path.is_symlink():
            text = path.read_text(encoding="utf-8")
            wanted[path] = filled(text, settings, str(path.relative_to(k8s)))
    return {
        path: text
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if --check finds a difference; 2 if a setting can't be used."""
    parser = argparse.ArgumentParser(description="k8s/settings.env -> the manifests")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "k8s")
    parser.add_argument("--check", action="store_true", help="only say what it would write")
    given = parser.parse_args(arguments)
    try:
        changed = changes(given.folder, ROOT / "yamls")
    except (SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in changed.items():
        print(f"{'differs' if given.check else 'written'}: {path.relative_to(given.folder)}")
        if not given.check:
            path.write_text(text, encoding="utf-8")
    return 1 if changed and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
