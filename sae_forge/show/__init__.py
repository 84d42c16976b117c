"""Printers of results; they know no model."""
