"""The code that an exported student carries, and loading students with the code installed here."""
