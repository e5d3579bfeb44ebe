"""The ops of ViTPose as functions of tensors, each with a reference in PyTorch and Triton kernels.

Each op has one file in this folder (reference and public function) and one of the same name in `gpu/` (kernels). All
other files are shared by several ops. `vitpose_fast.functional` lists the public functions. The package needs only
torch, and triton to run the kernels. It is the lowest layer of the repository and imports no other package of it.
"""
