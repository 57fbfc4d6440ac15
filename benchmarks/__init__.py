"""`python -m benchmarks` measures the losses; `.training`, `.startup` and `.toy_data` are run likewise."""
