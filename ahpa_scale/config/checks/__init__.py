# SPDX-License-Identifier: Apache-2.0
"""Whether a configuration can work, before anything starts: alone, with its engine, its levels, its
data and its folders. Free of torch.
"""
