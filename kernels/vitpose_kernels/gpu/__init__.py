"""The Triton kernels, one file per op of the same name. Imported when an op launches, never before."""
