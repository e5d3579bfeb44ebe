"""Triton kernels, one file per op and named after it.

A file of this package is imported when its op first launches a kernel and never earlier, so that the PyTorch references
run without triton.

Kernels are launched with scalars, pointers and strides, and build structured values (`NamedTuple`s and tuples of
tensors) from them in their first lines. Triton would accept such tuples as launch arguments, compiled ahead of time or
interpreted, but PyTorch does not look inside them: `torch.library.wrap_triton` keeps every argument that is neither a
tensor nor a number as a constant beside the graph, so a tensor inside a tuple is silently missing from what
torch.compile and torch.export record (torch 2.13). Passing tuples between the functions of one kernel is safe.

Rules for tuples inside kernels, in Triton 3.6 and 3.9:
  * A compile-time constant in a tuple that is assigned to a name becomes a tensor. Constants are therefore passed as
    separate `tl.constexpr` parameters.
  * A function that returns a tuple with None in it does not compile in 3.6.
  * No field may be named `values`: the name would refer to the attribute of Triton's own tuple.
"""
