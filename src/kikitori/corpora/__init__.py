"""Reads corpora on disk as rows: Common Voice, manifests, Hugging Face datasets, and the demo corpus."""
