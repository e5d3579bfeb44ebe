"""Floor 2: everything that needs a data set or an optimizer. `data` -> `run` and `evaluation`; `demo` uses them all."""
