# SPDX-License-Identifier: Apache-2.0
"""Packages that come with an extra of this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ahpa_scale.errors import UserError


@contextmanager
def extra(name: str, place: str) -> Iterator[None]:
    """Around the import of a package of an extra.

    Raises:
        UserError: it is not here.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{place} needs a package that is not here: pip install 'ahpa-scale[{name}]'"
        ) from error
