"""What can go wrong though all input was right."""


class Failed(RuntimeError):
    """Memory, space or a finite number was missing. The text is a sentence for the user, who finds in it what
    to change.
    """


def out_of_memory(error: Exception) -> bool:
    """Whether JAX has raised this for want of memory; known by its name, so that JAX need not be imported."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
