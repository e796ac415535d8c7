"""Rows and what is made of them: checked, imported, taken out of use."""
