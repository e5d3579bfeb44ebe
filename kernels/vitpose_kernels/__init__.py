"""Floor 0: the ops of ViTPose as functions of tensors, each with its reference in PyTorch and its Triton kernels.

One file per op; `vitpose_fast.functional` is their index. Needs torch, and triton where kernels are to run.
"""
