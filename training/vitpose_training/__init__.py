"""Training and evaluation: everything that needs a data set or an optimizer.

The imports between its packages go one way: `run` and `evaluation` import `data`, and `demo` imports all three.
"""
