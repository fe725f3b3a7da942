"""Every knob with its meaning, and the named sets that come with the program; root ``hparams.py`` gathers them."""
