"""The `pycni` command."""
