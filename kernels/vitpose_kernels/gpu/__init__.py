"""The Triton kernels, one file per op of the same name. Imported when an op launches, never before.

Kernels are launched with scalars, pointers and strides, and build the values that they pass on (`NamedTuple`s and
tuples of tensors) in their first lines. Triton itself would take such values as arguments of a launch, compiled ahead
of time or interpreted, but PyTorch does not see into them: `torch.library.wrap_triton` keeps every argument that is no
tensor or number as a constant beside the graph, so that a tensor inside a tuple is missing from what torch.compile and
torch.export record, without an error (torch 2.13). Between the functions of a kernel this does not arise.

What holds for values inside of kernels, in Triton 3.6 and 3.9: a constant in a tuple that is assigned to a name becomes
a tensor, so constants stay parameters; a function that returns a tuple with None in it does not compile in 3.6; a field
named `values` would be that of Triton's own tuple.
"""
