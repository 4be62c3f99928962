"""What was trained, a file each."""
