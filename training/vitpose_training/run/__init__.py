"""A training run: its configuration, its training loop, and the files it writes."""
