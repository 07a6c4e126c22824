"""Rows to batches: decoding, filters, caches, samplers, the LightningDataModule."""
