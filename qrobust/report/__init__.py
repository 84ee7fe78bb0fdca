"""Reports that tie each number to the model, the query, the backend and the time it took."""
