# SPDX-License-Identifier: Apache-2.0
"""Pictures as people have them: which files of a folder they are, and how each one is read."""
