"""Benchmarks for airspeed-velocity; CONTRIBUTING.md says how to run them.

`gate` holds the figures that may fail a change; `kernels`, `functional`, `transformer` and `scaling` say where time
goes; `yardsticks` what memory allows; `peers` compares. With ``BNCPU_BENCH_SMALLEST=1`` every array is tiny: to see
that all run.
"""
