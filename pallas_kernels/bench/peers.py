"""Who is measured beside us: each peer is one function in `jax_peers` or `torch_peers`.

A part is what one process measures. Where a part's package is not installed, each of its rows says so.
"""

from __future__ import annotations

from importlib import metadata

from pallas_kernels.bench import jax_peers, torch_peers
from pallas_kernels.bench.table import Peer

PEERS = {
    "jax": (
        Peer("JAX cuDNN", jax_peers.cudnn),
        Peer("JAX attention_mgpu", jax_peers.attention_mgpu),
    ),
    "tokamax": (Peer("tokamax, Mosaic GPU", jax_peers.tokamax),),
    "torch": (
        Peer("PyTorch FlashAttention-2", torch_peers.flash_attention_2),
        Peer("PyTorch cuDNN", torch_peers.cudnn),
        Peer("PyTorch FlexAttention", torch_peers.flex_attention, (128, 128)),
    ),
    "flash_attention_3": (Peer("FlashAttention-3", torch_peers.flash_attention_3),),
    "flash_attention_4": (
        Peer("FlashAttention-4", torch_peers.flash_attention_4, (192, 128)),  # its fastest
        Peer("FlashAttention-4", torch_peers.flash_attention_4, ()),
    ),
    "flashinfer": (Peer("FlashInfer", torch_peers.flashinfer, ()),),
}
PACKAGES = {  # what a part needs, as PyPI names it
    "jax": "jax",
    "tokamax": "tokamax",
    "torch": "torch",
    "flash_attention_3": "fa3-fwd",
    "flash_attention_4": "flash-attn-4",
    "flashinfer": "flashinfer-python",
}


def why_not(part: str, platform: str, device: str) -> str | None:
    """Why no row of the part can be measured here; None if they may be."""
    if platform != "gpu":
        return f"JAX sees no GPU, only {device}"
    package = PACKAGES[part]
    return None if any(metadata.distributions(name=package)) else f"{package} is not installed"
