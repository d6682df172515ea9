"""Proof of what a pruned model is: its outputs and its latency beside the original's, and the gates on them."""
