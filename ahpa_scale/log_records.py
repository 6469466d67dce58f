# SPDX-License-Identifier: Apache-2.0
"""Log records that tell no secret, whoever logs them and wherever a handler writes them to: a
library's tracebacks hold its URLs. Standard library only.
"""

from __future__ import annotations

import logging

from ahpa_scale.printable import without_secrets


class MaskedRecord(logging.LogRecord):
    """Masks its message, and the traceback that a formatter has made of its error."""

    def getMessage(self) -> str:
        """As handlers ask for it."""
        return without_secrets(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The traceback; formatters put it here before they write it."""
        text: str | None = self.__dict__.get("exc_text")
        return text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = text and without_secrets(text)


def mask_records() -> None:
    """From now on all records of this process are of this kind."""
    logging.setLogRecordFactory(MaskedRecord)
