"""Text normalisation, error rates and their confidence intervals. Imports no other package."""
