"""Training and evaluation: everything that needs a data set or an optimizer.

`data` and `evaluation` import each other's modules, since the catalog of data sets names the metric of each. `run`
imports both, and `demo` imports all three. No package imports `run` or `demo` otherwise.
"""
