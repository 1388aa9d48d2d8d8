"""The device runtime against its bars, in one run: ``python -m benchmarks.runtime``; ../README.md."""
