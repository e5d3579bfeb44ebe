"""Train ViTPose and ViTPose++: run `python training/train.py PRESET`, or start this file with torchrun.

Equivalent to `vitpose-fast train`; the command is implemented in `vitpose_training/run/train.py`.
"""

import sys

from vitpose_fast.__main__ import run
from vitpose_training.run.train import main

if __name__ == "__main__":
    sys.exit(run(main))
