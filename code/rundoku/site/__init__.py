"""How notes become pages."""
