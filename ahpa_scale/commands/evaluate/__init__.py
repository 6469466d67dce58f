# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate`: measures a run's checkpoints, during its training or after it."""
