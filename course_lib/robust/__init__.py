"""How a model learns more than its examples: augmentation, regularizers, attacks, search."""
