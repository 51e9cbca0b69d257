"""From a picture to latents and back."""

from kinema.tokenizers.convolutional import ConvTokenizer, ConvTokenizerConfig
from kinema.tokenizers.objective import (
    TokenizerObjective,
    TokenizerObjectiveConfig,
    to_pixels,
)

__all__ = [
    "ConvTokenizer",
    "ConvTokenizerConfig",
    "TokenizerObjective",
    "TokenizerObjectiveConfig",
    "to_pixels",
]
