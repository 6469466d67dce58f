# SPDX-License-Identifier: Apache-2.0
"""Lets `python -m ahpa_scale` run the command `ahpa-scale`."""

from ahpa_scale.cli import main

main()
