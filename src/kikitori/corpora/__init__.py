"""Corpora on disk to rows: Common Voice, manifests, Hugging Face datasets, the demo."""
