"""The Ki-67 index from H&E alone: patch pairs of registered slides, models that learn from them, and their evaluation."""
