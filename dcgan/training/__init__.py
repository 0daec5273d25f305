"""A run: built, trained, saved and resumed."""
