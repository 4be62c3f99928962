"""More frames than a model takes at once: reconstructed in chunks that overlap, which similarities bring into
one world.

`plan` says which frames a chunk has, `fit` how two chunks lie to each other by what both see, `loops` which
distant frames may show the same place, `graph` where all chunks go so that all of that agrees, and `join`
does it, all in numpy on the host, where a model is a function of frames. `reconstruct_sequence` does all of
that for a model.
"""

from fastvggt_jax.sequence.join import POOR as POOR
from fastvggt_jax.sequence.join import Joined as Joined
from fastvggt_jax.sequence.join import Piece as Piece
from fastvggt_jax.sequence.join import join as join
from fastvggt_jax.sequence.models import describe as describe
from fastvggt_jax.sequence.models import reconstruct_sequence as reconstruct_sequence
from fastvggt_jax.sequence.plan import LEAST as LEAST
from fastvggt_jax.sequence.plan import overlap_of as overlap_of
from fastvggt_jax.sequence.plan import plan as plan
