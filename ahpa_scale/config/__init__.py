# SPDX-License-Identifier: Apache-2.0
"""One YAML is one run: the strict schema, its loader, and the checks made before anything
starts.
"""
