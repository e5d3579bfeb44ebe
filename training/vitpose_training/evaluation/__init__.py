"""From a model to the metrics of a data set, its mistakes, and pictures of the worst."""
