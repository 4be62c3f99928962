"""Hostile input and faults: whatever happens, a sentence, an exit code, and nothing of the user's lost."""
