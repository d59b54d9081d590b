"""storage: the ground floor: files that are whole or absent."""
