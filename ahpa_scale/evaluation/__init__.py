# SPDX-License-Identifier: Apache-2.0
"""What a trained model is measured by: held-out loss, samples, FID and KID, and what its blocks
show of an encoder's levels.
"""
