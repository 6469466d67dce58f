# SPDX-License-Identifier: Apache-2.0
"""How an API server merges the patches that kubectl sends."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

#: Lists that are merged by a key; others are replaced.
_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
}


def merged(old: Any, patch: Any, strategic: bool) -> Any:
    """A merge patch, or a strategic one: lists of named things are merged by name."""
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    if strategic and patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    new = dict(old)
    for key, value in patch.items():
        if strategic and key.startswith("$"):
            continue
        if value is None:
            new.pop(key, None)
        elif strategic and key in _KEYS and isinstance(new.get(key), list):
            new[key] = _merged_list(new[key], value, _KEYS[key])
        else:
            new[key] = merged(
                new.get(key, {} if isinstance(value, dict) else None), value, strategic
            )
    return new


def _merged_list(old: list[Object], patch: list[Object], key: str) -> list[Object]:
    if not all(key in item for item in [*old, *patch]):
        return patch
    found = {item[key]: item for item in old}
    for item in patch:
        if item.get("$patch") == "delete":
            found.pop(item[key], None)
        else:
            found[item[key]] = merged(found.get(item[key], {}), item, True)
    return list(found.values())
