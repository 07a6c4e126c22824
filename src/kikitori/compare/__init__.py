"""Many runs, ranked and shown."""
