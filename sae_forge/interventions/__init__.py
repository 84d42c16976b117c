"""The room where a live activation is edited."""
