# SPDX-License-Identifier: Apache-2.0
"""ahpa_scale: train Diffusion Transformers with AHPA, the alignment to a frozen VAE's own
features.
"""

import time

#: When this process began, for all that a user can tell; time limits count from here.
STARTED = time.monotonic()

__version__ = "0.1.0"
