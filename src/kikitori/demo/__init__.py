"""A page on this machine to try a tuned model next to its base."""
