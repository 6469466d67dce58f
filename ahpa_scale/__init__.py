# SPDX-License-Identifier: Apache-2.0
"""ahpa_scale: train Diffusion Transformers with AHPA, the alignment to a frozen VAE's own
features.
"""

import time

#: About when this process began: the import of this package. Time limits count from here.
STARTED = time.monotonic()

__version__ = "0.1.0"
