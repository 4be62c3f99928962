"""What a model's global attention attends to: `attention` measures it, `figures` draws it."""
