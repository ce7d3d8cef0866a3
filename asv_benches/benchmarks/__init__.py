"""Benchmarks for airspeed-velocity; CONTRIBUTING.md says how to run them."""
