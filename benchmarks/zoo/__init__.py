"""Attention, encoders and models of other libraries, each with its claims; and ours. See benchmarks/peers.py."""
