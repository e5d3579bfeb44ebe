"""Train ViTPose and ViTPose++: `python training/train.py PRESET`, or under torchrun.

The same as `vitpose-fast train`; the command itself is in `vitpose_training/run/train.py`.
"""

import sys

from vitpose_fast.__main__ import run
from vitpose_training.run.train import main

if __name__ == "__main__":
    sys.exit(run(main))
