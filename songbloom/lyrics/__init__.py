"""Words: vocabularies, readings, windows of words for a chunk of music, and times of words."""
