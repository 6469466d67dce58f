# SPDX-License-Identifier: Apache-2.0
"""Checkpoints. Loading one never executes anything in it."""
