"""Box-regression losses, heads, decoders and parameter groups for PyTorch."""
