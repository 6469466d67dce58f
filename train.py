# SPDX-License-Identifier: Apache-2.0
"""Train a Diffusion Transformer: composer [-n RANKS] train.py yamls/RUN.yaml [key=value ...]"""

import sys

from ahpa_scale.config.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
