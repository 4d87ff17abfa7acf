"""Tests that need more than a clean machine: a container engine, Slurm, a package index."""
