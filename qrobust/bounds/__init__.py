"""Certified bounds in outward-rounded float64, one file per method, batched over inputs."""
