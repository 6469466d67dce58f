# SPDX-License-Identifier: Apache-2.0
"""The commands of `ahpa-scale`, a module or folder each: options, then work. Heavy imports wait
inside, so help is immediate.
"""
