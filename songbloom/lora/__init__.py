"""Low-rank adapters of whole models: where they may stand, how they are trained, and the files they are kept in."""
