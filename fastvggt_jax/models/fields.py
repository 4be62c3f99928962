"""Types of a model's fields, with their ranges.

A configuration comes with a weight file, from anywhere: no value of it may command more memory or time than a
model of that kind can use.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval, Len

Pixels = Annotated[int, Interval(ge=1, le=8192)]  # the side of an image or a patch
Width = Annotated[int, Interval(ge=1, le=65536)]  # of tokens, channels
Layers = Annotated[int, Interval(ge=1, le=1024)]
Heads = Annotated[int, Interval(ge=1, le=1024)]  # of attention
Layer = Annotated[int, Interval(ge=0, le=1023)]  # the number of one
Tokens = Annotated[int, Interval(ge=0, le=4096)]
Rounds = Annotated[int, Interval(ge=1, le=64)]  # iterations, which are compiled one by one; strides
Levels = Annotated[int, Interval(ge=1, le=12)]  # of a pyramid, each of half the size
Ratio = Annotated[float, Interval(gt=0, le=64)]
Four = Len(4, 4)
