# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: loaded without ever executing what is in them."""
