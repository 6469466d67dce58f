# SPDX-License-Identifier: Apache-2.0
"""Log records without secrets, whichever library logs them and wherever a handler writes them.
Libraries' tracebacks contain URLs. Standard library only.
"""

from __future__ import annotations

import logging

from ahpa_scale.printable import without_secrets


class MaskedRecord(logging.LogRecord):
    """Masks secrets in its message and in its formatted traceback."""

    def getMessage(self) -> str:
        """The masked message."""
        return without_secrets(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The masked traceback; formatters store it here before they write it."""
        text: str | None = self.__dict__.get("exc_text")
        return text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = text and without_secrets(text)


def mask_records() -> None:
    """Makes all further log records of this process `MaskedRecord`."""
    logging.setLogRecordFactory(MaskedRecord)
