"""songbloom: train and sample song models (hierarchical VQ-VAE + transformer priors)."""

__version__ = "0.1.0"
