# SPDX-License-Identifier: Apache-2.0
"""Studies: variants x seeds x data sets, run by one command and shown in one report."""
