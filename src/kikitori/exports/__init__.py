"""Models in the formats of other engines, each written and read back by its own engine."""
