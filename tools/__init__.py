# SPDX-License-Identifier: Apache-2.0
"""Tools of the repository; none is part of the package."""
