"""What a configuration may contain: overrides, checks, allowed targets, secrets."""
