"""One update of D and one of G."""
