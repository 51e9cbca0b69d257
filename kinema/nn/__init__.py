"""Parts of networks: attention, blocks, embeddings, caches."""

from kinema.nn.blocks import Block, norm
from kinema.nn.cache import LayerCache, Ring
from kinema.nn.embeddings import FourierFeatures, rotary_table, rotate

__all__ = ["Block", "FourierFeatures", "LayerCache", "Ring", "norm", "rotary_table", "rotate"]
