"""Writing trained models as Hugging Face folders that load without this project."""
