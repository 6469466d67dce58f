# SPDX-License-Identifier: Apache-2.0
"""Train a Diffusion Transformer: composer [-n RANKS] train.py yamls/RUN.yaml [key=value ...]"""

import os
import sys

from ahpa_scale.ending import one_way_out
from ahpa_scale.preemption import listening
from ahpa_scale.streams import make_lasting

if __name__ == "__main__":
    make_lasting()
    with listening(preparing=True) as requests, one_way_out(always=True):
        # Imported here, so that signals are heard during the slow imports.
        from ahpa_scale.config.errors import exit_on_user_error, speaks_for_its_node
        from ahpa_scale.launch.alone import check_not_alone, parents_environment
        from ahpa_scale.run.main import main

        with exit_on_user_error(speaks=speaks_for_its_node):
            check_not_alone(os.environ, parents_environment(os.getppid()))
        main(sys.argv[1:], requests)
