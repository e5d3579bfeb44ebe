"""Evaluation: run a model on a data set, score its poses, break down its mistakes and draw the worst of them."""
