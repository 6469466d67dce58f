# SPDX-License-Identifier: Apache-2.0
"""One run: builds a Trainer with alignment, engine, loggers and checkpoints from the
configuration.
"""
