"""How a candidate samples; a column of the tables, so that readers need no more than this."""

KINDS = SINGLE, RELAY, DISTILLED = "single", "relay", "distilled"
