"""Many runs: grids, the paper's experiments, and searches."""
