# SPDX-License-Identifier: Apache-2.0
"""Measures of a trained model: held-out loss, samples, FID and KID, and how much its blocks show of
an encoder's levels.
"""
