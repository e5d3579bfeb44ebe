"""A demonstration on rendered people that needs no downloads."""
