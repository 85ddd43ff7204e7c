"""Images of users and of models: reading files safely, resizing, augmentation, grids."""
