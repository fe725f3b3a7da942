"""Parts of the sung corpus renderer: words, melody, band, voices, checks and files."""
