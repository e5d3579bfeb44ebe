"""The ops of ViTPose as functions of tensors, each with its reference in PyTorch and its Triton kernels.

There is one file per op; `vitpose_fast.functional` lists them all. The package needs only torch, and triton to run the
kernels. It is the lowest layer (floor 0) of the repository: it imports none of the other packages.
"""
