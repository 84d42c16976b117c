"""Plain statistics on plain numbers: no model, no torch."""
