# SPDX-License-Identifier: Apache-2.0
"""Pictures to cached latents (prepare) and cached latents to batches (stream).

Nothing is imported here, so that `ahpa_scale.data.card` stays free of torch.
"""
