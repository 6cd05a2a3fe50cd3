"""From a trained module to a folder or a repository that others load; knows neither half."""
