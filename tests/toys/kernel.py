"""A toy kernel: the definition itself, which remembers that it was asked."""

from pallas_kernels import Implementation, reference
from pallas_kernels.implementation import ATTENTION


class Remembering(Implementation):
    name = "remembering"
    operations = (ATTENTION,)
    dtypes = ("float32",)
    served = 0

    def attend(self, q, k, v, block_mask, config=None):
        Remembering.served += 1
        return reference.block_sparse_attention(q, k, v, block_mask)
