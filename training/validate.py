"""Evaluate a model on any of the supported data sets: run `python training/validate.py`.

Equivalent to `vitpose-fast validate`; the command is implemented in `vitpose_training/evaluation/validate.py`.
"""

import sys

from vitpose_fast.__main__ import run
from vitpose_training.evaluation.validate import main

if __name__ == "__main__":
    sys.exit(run(main))
