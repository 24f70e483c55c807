"""The benchmark: `make bench` measures a target, `make bench-compare` sets layouts side by side."""
