# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the model files of other projects. Nothing in here executes a pickle."""
