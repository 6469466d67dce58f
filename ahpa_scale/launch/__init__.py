# SPDX-License-Identifier: Apache-2.0
"""Starts a job on several nodes: reads the scheduler's variables, calls Composer's launcher."""
