"""What can go wrong though all input was right."""


class Failed(RuntimeError):
    """Memory, space or a finite number was missing. The text is a sentence for the user, who finds in it what to change."""
