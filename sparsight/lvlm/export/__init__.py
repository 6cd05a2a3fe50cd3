"""Image-text models as plain transformers folders, checked by loading them again."""
