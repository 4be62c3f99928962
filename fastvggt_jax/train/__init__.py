"""Training of VGGT on scenes whose truth is known."""
