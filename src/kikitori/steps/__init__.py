"""What the pipelines share: a session with its settings and results, data and model, length, scores, the guard."""
