"""Numbers about text: normalisation, error rates, their confidence intervals, alignment. Imports no other package."""
