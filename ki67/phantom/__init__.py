"""Drawn tissue: the painter of training fields and of whole H&E and Ki-67 slides with known truth."""
