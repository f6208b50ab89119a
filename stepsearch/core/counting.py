"""Ways of counting the FLOPs of a network."""

FULL_COUNT = "full"
COUNTINGS = (FULL_COUNT, "ddsm-paper")  # the latter leaves the products of attention out
