"""Measurements that are no tests: they take long, and their numbers go to docs/results."""
