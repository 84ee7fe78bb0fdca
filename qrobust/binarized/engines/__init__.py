"""One file per solver: constraints in, an input that loses the label out, or the claim that there is none."""
