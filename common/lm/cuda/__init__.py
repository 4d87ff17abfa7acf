"""The engine's own path on a GPU: a ragged attention kernel in Triton, and steps as CUDA graphs."""
