"""Files of other tools: how they are read safely, and what their names are here."""
