"""A scene made more exact after the model: what photographs show is measured, and cameras follow it."""
