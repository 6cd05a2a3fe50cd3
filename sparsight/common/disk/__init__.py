"""Files and folders: written whole or not at all, kept with checksums, read back safely."""
