"""Numerical operations with several backends; one folder per operation: the door with its checks, the reference, and the fast versions (docs/add_a_kernel.md)."""
