"""Compiled loops. They know NumPy and numba; they know neither torch nor the package."""
