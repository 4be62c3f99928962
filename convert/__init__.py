"""Converts official PyTorch checkpoints into the one native weight file: the only place that knows PyTorch's
names.
"""
