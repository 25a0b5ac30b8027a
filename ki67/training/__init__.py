"""Training of the networks: datasets on disk, datasets drawn by the painter, targets, augmentation, and the loop."""
