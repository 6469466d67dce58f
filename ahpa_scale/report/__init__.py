# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about runs: reads what they left, and draws it. Free of torch."""
