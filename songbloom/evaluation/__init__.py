"""Is it singing, and what: a phoneme recogniser, distances between sounds and between sets of them, pitch."""
