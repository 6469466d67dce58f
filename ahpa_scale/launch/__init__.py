# SPDX-License-Identifier: Apache-2.0
"""How a job starts on several nodes: the scheduler's variables -> Composer's launcher."""
