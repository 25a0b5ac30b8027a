"""The Ki-67 index from H&E alone: pairs of patches, models that learn from them, and how well they do."""
