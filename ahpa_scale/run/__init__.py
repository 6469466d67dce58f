# SPDX-License-Identifier: Apache-2.0
"""One run: what the configuration says, as a Trainer with its alignment, engine, loggers and
checkpoints.
"""
