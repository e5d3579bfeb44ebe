"""Evaluate a model on any of the data sets: `python training/validate.py`.

The same as `vitpose-fast validate`; the command itself is in `vitpose_training/evaluation/validate.py`.
"""

import sys

from vitpose_fast.__main__ import run
from vitpose_training.evaluation.validate import main

if __name__ == "__main__":
    sys.exit(run(main))
