# SPDX-License-Identifier: Apache-2.0
"""Pictures that cannot be read: listed with their reasons, and skipped while they are few."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ahpa_scale import storage, typed_json
from ahpa_scale.data.pictures.decode import UnreadablePictureError
from ahpa_scale.data.pictures.files import shown
from ahpa_scale.errors import UserError

REJECTS_NAME = "rejects.jsonl"
#: Most bytes of the file.
_LIMIT = 1 << 30


class Rejects:
    """The pictures of one pass that cannot be read.

    Attributes:
        firsts: pictures whose further frames or pages were left out.

    Args:
        total: number of pictures in the pass.
        share: share of them that may be unreadable. One is always allowed, unless this is 0.
        advice: what to do if there are more, for the message.
    """

    def __init__(self, total: int, share: float, advice: str = "mend them") -> None:
        self.total = total
        self._share, self._advice = share, advice
        self._most = max(1, int(share * total)) if share else 0
        self._reasons: dict[str, str] = {}
        self.firsts = 0

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, error: UnreadablePictureError) -> None:
        """Skips a picture; it counts once.

        Raises:
            UserError: too many cannot be read.
        """
        self.add_all({error.name: error.reason})

    def add_all(self, reasons: Mapping[str, str]) -> None:
        """Skips pictures, by name and reason; each counts once.

        Raises:
            UserError: too many cannot be read.
        """
        for name, reason in reasons.items():
            self._add({_written(name): reason})

    def add_part(self, folder: str) -> int:
        """Skips the pictures that another process has listed in its folder as unreadable, if any.

        Returns:
            Their number.

        Raises:
            UserError: there are too many now, or the list is damaged.
        """
        where = storage.join(folder, REJECTS_NAME)
        if not storage.exists(where):
            return 0
        reasons: dict[str, str] = {}
        for place, value in typed_json.parse_lines(storage.read_bytes(where, _LIMIT), where):
            told = typed_json.fit(dict[str, str], value, place)
            if told.keys() != {"picture", "reason"}:
                raise UserError(f"{place} tells of no rejected picture: remove the file's folder")
            reasons[told["picture"]] = told["reason"]
        self._add(reasons)
        return len(reasons)

    def _add(self, reasons: dict[str, str]) -> None:
        self._reasons |= reasons
        if len(self) > self._most or len(self) == self.total:
            first, *_, last = [*self._reasons.items()] * 2
            told = [f"{shown(name)} ({reason})" for name, reason in dict([first, last]).items()]
            raise UserError(
                f"{len(self)} of {self.total} pictures cannot be read, and "
                f"{100 * self._share:.3g} % may be: {' ... '.join(told)}; {self._advice}"
            )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _written(name) in self._reasons

    def write(self, out: str) -> None:
        """Lists them in `rejects.jsonl` in `out`, if there are any: one object per line, with
        ``picture`` and ``reason``.
        """
        told = ({"picture": name, "reason": reason} for name, reason in self._reasons.items())
        if self._reasons:
            text = "".join(json.dumps(each) + "\n" for each in told)
            storage.write_text(storage.join(out, REJECTS_NAME), text)

    def summary(self, out: str) -> str | None:
        """One line for the user; None if all could be read."""
        if not self._reasons:
            return None
        where = storage.join(out, REJECTS_NAME)
        return f"{len(self)} of {self.total} pictures cannot be read and are left out: see {where}"


def _written(name: str) -> str:
    """A name as JSON can hold it: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
