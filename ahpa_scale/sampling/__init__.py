# SPDX-License-Identifier: Apache-2.0
"""Samples latents with a velocity model, and lays pictures out in a labelled grid."""
