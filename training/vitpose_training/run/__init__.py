"""A training run: its configuration, its loop, and what it leaves on the disk."""
