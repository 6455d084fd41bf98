"""The optional wing of `optim` that numba compiles: a whole fused step, and the loader of all compiled modules."""
