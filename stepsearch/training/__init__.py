"""Training of supernets, and the data they are trained on."""
