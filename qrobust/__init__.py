"""qrobust: proofs of what quantization does to a neural network."""
