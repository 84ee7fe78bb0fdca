"""One file per way of answering a query."""
