"""int8 by EdgeOps beside the stock tools, on models of every kind, in one run: ``python -m benchmarks.converter``; README.md."""
