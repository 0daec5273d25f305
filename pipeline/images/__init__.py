"""One image: from bytes to pixels, and to the size that training sees."""
