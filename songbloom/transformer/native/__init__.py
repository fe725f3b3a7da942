"""A decoding step in C++, built on first use; where it cannot be built everything works without it, slower."""
