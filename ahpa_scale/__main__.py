# SPDX-License-Identifier: Apache-2.0
"""`python -m ahpa_scale` is the command `ahpa-scale`."""

from ahpa_scale.cli import main

main()
