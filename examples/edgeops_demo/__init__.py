"""The whole loop of EdgeOps on one machine and real data; the only package that sees all parts."""
