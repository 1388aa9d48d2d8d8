"""What EdgeOps costs, side by side with the alternative, in one run; ``python -m benchmarks``. Method: README.md."""
