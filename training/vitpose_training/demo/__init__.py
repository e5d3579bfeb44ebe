"""A demonstration on rendered people, for which nothing has to be downloaded."""
