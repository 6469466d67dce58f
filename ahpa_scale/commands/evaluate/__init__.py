# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale evaluate`: figures of a run's checkpoints, beside its training or after it."""
