# SPDX-License-Identifier: Apache-2.0
"""Checks before anything starts whether a configuration can work: by itself, and with its engine,
its levels, its data and its folders. Free of torch.
"""
