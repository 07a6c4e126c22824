"""Many runs: launcher, Optuna search, their tables."""
