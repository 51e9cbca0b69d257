"""Parts of networks: attention, blocks, embeddings, caches."""

from kinema.model.blocks import Block, norm
from kinema.model.cache import LayerCache, Ring
from kinema.model.embeddings import FourierFeatures, rotary_table, rotate

__all__ = ["Block", "FourierFeatures", "LayerCache", "Ring", "norm", "rotary_table", "rotate"]
