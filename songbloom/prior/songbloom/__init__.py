"""The SongBloom prior: one model that writes sketch tokens and latents in turns, a patch at a time.

Source: Yang et al. 2025, *SongBloom: Coherent Song Generation via Interleaved Autoregressive Sketching and Diffusion
Refinement* (arXiv 2506.07634).
"""
