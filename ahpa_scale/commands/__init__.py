# SPDX-License-Identifier: Apache-2.0
"""The commands of `ahpa-scale`, each in a module or folder: options, then work. Heavy imports are
inside the functions, so that the help appears at once.
"""
