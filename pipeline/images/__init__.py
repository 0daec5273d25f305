"""One image: from bytes to pixels, and to the square that training sees."""
