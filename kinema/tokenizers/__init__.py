"""From a picture to latents and back."""

from kinema.tokenizers.convolutional import ConvTokenizer, ConvTokenizerConfig
from kinema.tokenizers.objective import TokenizerObjective, TokenizerObjectiveConfig

__all__ = ["ConvTokenizer", "ConvTokenizerConfig", "TokenizerObjective", "TokenizerObjectiveConfig"]
