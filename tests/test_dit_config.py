# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of the transformers: what is refused, and with which advice."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ahpa_scale.models import build_dit, resolve_geometry


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("SiT-XL/2", "XL/2"),
        ("xl/2", "XL/2"),
        ("B2", "B/2"),
        ("tny/4", "tiny/4"),
        ("S/0", "S/2"),
        ("L/two", "L/2"),
        ("", "S/2"),
    ],
)
def test_an_unknown_name_gets_a_valid_suggestion(name, suggestion):
    with pytest.raises(ValueError, match=f"did you mean '{suggestion}'"):
        resolve_geometry(name, input_size=32)
    assert resolve_geometry(suggestion, input_size=32).grid >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 33}, "not a multiple of patch size 2; the nearest is 32"),
        ({"input_size": 0}, "the nearest is 2"),
        ({"heads": 5}, "not a multiple of heads 5"),
        ({"width": 90, "heads": 3}, "the nearest is 96"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"class_dropout_prob": 1.5}, r"class_dropout_prob must be in \[0, 1\]"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_dit("S/2", **{"input_size": 32, **options})


def test_importing_the_package_of_models_does_not_import_torch():
    code = (
        "import sys, ahpa_scale.models, ahpa_scale.models.dit_config;"
        "assert 'torch' not in sys.modules;"
        "from ahpa_scale.models import build_dit;"
        "assert 'torch' in sys.modules and 'composer' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
