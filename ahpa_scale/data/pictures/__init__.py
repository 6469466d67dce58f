# SPDX-License-Identifier: Apache-2.0
"""Users' pictures: which files of a folder are pictures, and how each one is read."""
