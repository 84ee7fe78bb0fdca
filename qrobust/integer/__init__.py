"""Integer programs: networks whose weights and activations are integers, run as a device's kernels run them."""
