"""Image utilities: safe reading of files, resizing, augmentation, grids."""
