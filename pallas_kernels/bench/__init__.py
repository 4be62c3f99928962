"""`python -m pallas_kernels.bench`: our kernels beside those of others; see `__main__`."""
