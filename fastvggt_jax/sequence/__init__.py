"""More frames than a model takes at once: reconstructed in chunks that overlap, which similarities bring into
one world.

`plan` says which frames a chunk has, `fit` how two chunks lie to each other by what both see, `loops` which
distant frames may show the same place, `graph` where all chunks go so that all of that agrees, and `join`
does it. Numpy on the host: a model is a function of frames.
"""
