"""Triton kernels. Every op has a file with its name; `attention` has four more, and `aot` compiles all of them.

An op imports its file here inside the function that builds its launches, not at module level, so that the PyTorch
references run without triton.

The functions named `forward` and `backward` allocate outputs and return (outputs, launches). They launch nothing:
`launch.run` runs the `Launch` values, or records them. `arch` is a compute capability times ten, such as 90.

Terms:
  * A program is one instance of a kernel, a CUDA thread block; its index is `tl.program_id(0)`.
  * A tile is the block of rows and columns that a program holds at a time. The constants `BLOCK_...` are its sizes.
  * `..._ptr` is the address of a tensor, `stride_...` a stride in elements.

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
