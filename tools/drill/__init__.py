# SPDX-License-Identifier: Apache-2.0
"""The fault drill: small real jobs of two ranks that meet errors, signals and outages."""
