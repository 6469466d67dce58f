# SPDX-License-Identifier: Apache-2.0
"""`ahpa-scale sample`: draws pictures from a checkpoint, on one process or on all ranks."""
