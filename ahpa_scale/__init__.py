# SPDX-License-Identifier: Apache-2.0
"""ahpa_scale: train Diffusion Transformers with AHPA, the alignment to a frozen VAE's own
features.
"""

__version__ = "0.1.0"
